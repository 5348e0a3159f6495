"""Text for people: names and numbers on the screen, in the report, in a sentence.

Data for machines (MLflow, results.csv) has the dotted names and all digits.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kdray.evaluation.statistics import Interval
from kdray.evaluation.trial_record import TrialRecord
from kdray.forms.metrics import split_form
from kdray.tasks.kinds import task_metrics

_SHORT_HEADINGS = {
    "student.family": "family",
    "student.depth": "depth",
    "distillation.temperature": "T",
    "distillation.alpha": "alpha",
    "training.learning_rate": "lr",
}
"""The headings of the settings that come first in a table, in the order of its columns."""
_METRIC_FORMATS: dict[str, tuple[str, Callable[[float], str]]] = {
    "retention": ("retention", lambda value: f"{value:.1%}"),
    "agreement": ("agreement", lambda value: f"{value:.1%}"),
    "latency_ms": ("latency", lambda value: f"{_three_digits(value)} ms"),
    "latency_p95_ms": ("p95 latency", lambda value: f"{_three_digits(value)} ms"),
    "throughput_per_s": ("throughput", lambda value: f"{value:,.0f}/s"),
    "cpu_latency_ms": ("CPU latency", lambda value: f"{_three_digits(value)} ms"),
    "cpu_latency_p95_ms": ("CPU p95 latency", lambda value: f"{_three_digits(value)} ms"),
    "cpu_throughput_per_s": ("CPU throughput", lambda value: f"{value:,.0f}/s"),
    "multiply_adds": ("multiply-adds", lambda value: f"{_three_digits(value / 1e6)} M"),
    "speedup": ("speed-up", lambda value: f"{value:.1f} x"),
    "cpu_speedup": ("CPU speed-up", lambda value: f"{value:.1f} x"),
    "parameters": ("parameters", lambda value: f"{_three_digits(value / 1e6)} M"),
    "size_mb": ("size", lambda value: f"{_three_digits(value)} MB"),
}
"""A metric that no task defines -> its heading, and the function that writes its value with the unit."""
_TASK_METRICS = task_metrics()
_SPELLINGS = {"f1": "F1"}
"""A word in the name of a metric -> how it is written in a heading."""


def settings_in_order(names: Iterable[str]) -> list[str]:
    """These settings in the order of the table: those with a short heading first, then the others by name."""
    first = list(_SHORT_HEADINGS)
    return sorted(names, key=lambda name: (first.index(name) if name in first else len(first), name))


def headings(names: Iterable[str]) -> dict[str, str]:
    """Dotted name -> the shortest heading that no other of these settings has, in the order of `settings_in_order`."""
    ordered = settings_in_order(names)
    last_parts = Counter(name.rpartition(".")[2] for name in ordered)
    return {name: _SHORT_HEADINGS.get(name) or _unique_heading(name, last_parts) for name in ordered}


def heading(metric: str) -> str:
    """The name of a metric for people: "p95 latency" for latency_p95_ms."""
    form, metric = split_form(metric)
    if form is not None:
        return f"{form.label} {heading(metric)}"
    if metric in _METRIC_FORMATS:
        return _METRIC_FORMATS[metric][0]
    if metric in _TASK_METRICS and _TASK_METRICS[metric].heading:
        return _TASK_METRICS[metric].heading
    return " ".join(_SPELLINGS.get(word, word) for word in metric.split("_"))


def noun(metric: str) -> str:
    """The name of a metric in a sentence: "Pearson correlation", where a heading is only "Pearson"."""
    return (_TASK_METRICS[metric].noun if metric in _TASK_METRICS else "") or heading(metric)


def has_points(metric: str) -> bool:
    """Whether people give a difference of this metric in points of 0.01; False for a value in the units of the data."""
    metric = split_form(metric)[1]
    return metric in ("retention", "agreement") or (metric in _TASK_METRICS and _TASK_METRICS[metric].is_share)


def format_metric(metric: str, value: float | None) -> str:
    """A metric's value, rounded, with its unit; a dash if there is no value, or if it is not a number."""
    if value is None or math.isnan(value):
        return "-"
    metric = split_form(metric)[1]
    if metric in _METRIC_FORMATS:
        return _METRIC_FORMATS[metric][1](value)
    return f"{value:.4f}" if has_points(metric) else _four_digits(value)


def format_interval(metric: str, interval: Interval) -> str:
    """A metric's value with its interval: 0.8985 (95%: 0.8840 to 0.9105)."""
    low, high = format_metric(metric, interval.low), format_metric(metric, interval.high)
    return f"{format_metric(metric, interval.estimate)} ({interval.level:.0%}: {low} to {high})"


def format_difference(metric: str, difference: Interval) -> str:
    """A difference of two values of a metric, with its interval: +0.2 points (95%: -0.8 to +1.2).

    A metric in the units of the data has no points: its difference is +0.0213 (95%: -0.0104 to +0.0521).
    """
    values = (difference.estimate, difference.low, difference.high)
    points = has_points(metric)
    estimate, low, high = (
        f"{100 * value:+.1f}" if points else f"{_sign(value)}{_four_digits(abs(value))}" for value in values
    )
    return f"{estimate}{' points' if points else ''} ({difference.level:.0%}: {low} to {high})"


def format_change(metric: str, difference: Interval) -> str:
    """A difference of two values in the units of the data, in words: lower by 12.30 (95%: 10.20 to 14.40).

    The bounds say by how much lower, too: a negative one means higher.
    """
    is_lower = difference.estimate < 0
    low, high = (-difference.high, -difference.low) if is_lower else (difference.low, difference.high)
    bounds = f"({difference.level:.0%}: {format_metric(metric, low)} to {format_metric(metric, high)})"
    return f"{'lower' if is_lower else 'higher'} by {format_metric(metric, abs(difference.estimate))} {bounds}"


def format_distance(metric: str, first: float, second: float) -> str:
    """How far apart two values of a metric are: 1.2 points, or 0.0213 for a metric in the units of the data."""
    distance = abs(first - second)
    return f"{100 * distance:.1f} points" if has_points(metric) else _four_digits(distance)


def format_setting(value: Any) -> str:
    """A setting's value; a float has about three digits, which are enough to distinguish trials."""
    if not isinstance(value, float):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e5:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits}e{int(exponent)}"
    return _three_digits(value)


def format_settings(params: Mapping[str, Any]) -> str:
    """The settings of a trial in one line: depth 2, T 3.12, alpha 0.70, lr 1.9e-4."""
    return ", ".join(f"{short} {format_setting(params[name])}" for name, short in headings(params).items())


def format_metrics(metrics: Mapping[str, float], names: Iterable[str]) -> str:
    """The named metrics in one line, without those that `metrics` does not have."""
    return ", ".join(f"{heading(name)} {format_metric(name, metrics[name])}" for name in names if name in metrics)


def format_status(record: TrialRecord) -> str:
    """The state of a trial: running, completed, "stopped at epoch 1", or "failed: <the error>"."""
    if record.state == "failed":
        return f"failed: {record.error or 'no reason was given'}"
    if record.state == "stopped" and record.history:
        return f"stopped at epoch {record.history[-1].get('epoch', 0):g}"
    return record.state


def format_count(count: int, noun: str) -> str:
    """A number of things: 1 trial, 1,024 trials."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_duration(seconds: float) -> str:
    """A duration, such as 45 s, 3 min 20 s, 2 h 05 min."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def shorten(text: str, longest: int) -> str:
    """The text in one line of at most `longest` characters."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _unique_heading(name: str, last_parts: Counter[str]) -> str:
    """The last part of a dotted name, or the whole name if another setting has the same last part."""
    last_part = name.rpartition(".")[2]
    return last_part.replace("_", " ") if last_parts[last_part] == 1 else name


def _sign(value: float) -> str:
    return "-" if value < 0 else "+"


def _four_digits(value: float) -> str:
    """Four digits that count, with zeros at the end where needed; all digits before the point of a large number."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


def _three_digits(value: float) -> str:
    size = abs(value)
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 0.1:
        return f"{value:.2f}"
    return f"{value:.3f}"
