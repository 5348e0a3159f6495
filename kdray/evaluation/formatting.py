"""How names and numbers are written for a person: on the screen, in the report, in a sentence.

Files for machines (MLflow, results.csv) keep the dotted names and all digits.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kdray.evaluation.statistics import Interval
from kdray.evaluation.trial_record import TrialRecord

_SETTINGS = {
    "student.depth": "depth",
    "distillation.temperature": "T",
    "distillation.alpha": "alpha",
    "training.learning_rate": "lr",
}  # in the order in which they are shown
_NUMBERS: dict[str, tuple[str, Callable[[float], str]]] = {
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
    "macro_f1": ("macro F1", lambda value: f"{value:.4f}"),
    "mcc": ("MCC", lambda value: f"{value:.4f}"),
}


def settings_in_order(names: Iterable[str]) -> list[str]:
    """Settings as they are shown: depth, temperature, alpha, learning rate, then the others by name."""
    first = list(_SETTINGS)
    return sorted(names, key=lambda name: (first.index(name) if name in first else len(first), name))


def headings(names: Iterable[str]) -> dict[str, str]:
    """Dotted name -> the shortest heading that tells these settings apart, in the order they are shown."""
    ordered = settings_in_order(names)
    tails = Counter(name.rpartition(".")[2] for name in ordered)
    return {name: _SETTINGS.get(name) or _tail(name, tails) for name in ordered}


def heading(metric: str) -> str:
    """What a metric is called."""
    return _NUMBERS[metric][0] if metric in _NUMBERS else metric.replace("_", " ")


def format_metric(metric: str, value: float | None) -> str:
    """A metric's value with its unit and no more digits than mean something; a dash where there is none."""
    if value is None:
        return "-"
    return _NUMBERS[metric][1](value) if metric in _NUMBERS else f"{value:.4f}"


def format_interval(metric: str, interval: Interval) -> str:
    """A metric's value with its interval: 0.8985 (95%: 0.8840 to 0.9105)."""
    low, high = format_metric(metric, interval.low), format_metric(metric, interval.high)
    return f"{format_metric(metric, interval.estimate)} ({interval.level:.0%}: {low} to {high})"


def format_points(difference: Interval) -> str:
    """A difference of shares in percentage points, with its interval: +0.2 points (95%: -0.8 to +1.2)."""
    estimate, low, high = (100 * value for value in (difference.estimate, difference.low, difference.high))
    return f"{estimate:+.1f} points ({difference.level:.0%}: {low:+.1f} to {high:+.1f})"


def format_setting(value: Any) -> str:
    """A setting's value: three digits are enough to tell trials apart."""
    if not isinstance(value, float):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e5:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits}e{int(exponent)}"
    return _three_digits(value)


def format_settings(params: Mapping[str, Any]) -> str:
    """The settings of a trial in a line: depth 2, T 3.12, alpha 0.70, lr 1.9e-4."""
    return ", ".join(f"{short} {format_setting(params[name])}" for name, short in headings(params).items())


def format_metrics(metrics: Mapping[str, float], names: Iterable[str]) -> str:
    """Those of the named metrics that are there, in a line."""
    return ", ".join(f"{heading(name)} {format_metric(name, metrics[name])}" for name in names if name in metrics)


def format_status(record: TrialRecord) -> str:
    """How a trial stands or ended: running, completed, stopped at epoch 1, failed: why."""
    if record.state == "failed":
        return f"failed: {record.error or 'no reason was given'}"
    if record.state == "stopped" and record.history:
        return f"stopped at epoch {record.history[-1].get('epoch', 0):g}"
    return record.state


def format_duration(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def shorten(text: str, longest: int) -> str:
    """The text in one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _tail(name: str, tails: Counter[str]) -> str:
    tail = name.rpartition(".")[2]
    return tail.replace("_", " ") if tails[tail] == 1 else name


def _three_digits(value: float) -> str:
    size = abs(value)
    return (
        f"{value:.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 0.1
        else f"{value:.3f}"
    )
