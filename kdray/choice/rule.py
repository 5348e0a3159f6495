"""The user's rule: which trials may be chosen, which of them is chosen, and the choice in words.

A rule is applied twice: to the figures of the search, which gives the candidates, and to the confirmed figures, which
gives the choice. This module does not know which rows and seeds the figures come from.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from kdray.errors import SpecError, did_you_mean
from kdray.evaluation.formatting import format_metric, noun
from kdray.evaluation.pareto import MINIMIZED, QUALITY, direction, knee_distances, pareto_front
from kdray.evaluation.trial_record import TrialRecord
from kdray.forms.form import Form
from kdray.forms.metrics import metric_name, named_forms
from kdray.settings import Settings

REPORTED_MISSES = 3
"""The number of trials that the sentence describes when no student satisfies the rule."""


class Choose(Settings):
    """The rule: the smallest student that keeps enough of the teacher's quality, the best within limits, or the knee.

    `Choose()`: the smallest latency of the students that keep 97 % of the teacher's quality, else the best quality.
    `Choose(at_most={"latency_ms": 5, "size_mb": 30})`: the best quality within these limits.
    `Choose(knee=True)`: the knee of the front. Beyond the knee, a gain in quality costs more than before it.
    """

    smallest: str | None = "latency_ms"
    """The metric to minimize among the students that are good enough. The default is None with `at_most` or `knee`."""
    retention: float | None = Field(0.97, gt=0)
    """The least share of the teacher's quality that the student keeps. The default is None with `at_most` or `knee`."""
    best: str = QUALITY
    """The metric that decides when `smallest` is None, between equal students, and when no student is good enough;
    `quality` stands for the quality metric of the task."""
    at_most: dict[str, float] = Field(default_factory=dict)
    """Name of a metric -> its largest allowed value. Less of the metric must be better."""
    knee: bool = False
    """Choose the knee of the front of `best` over `smallest` (over latency_ms where `smallest` is None)."""
    otherwise: Literal["best", "none"] = "best"
    """When no student is good enough: choose the best one and report it, or choose none (exit code 3)."""

    @model_validator(mode="before")
    @classmethod
    def _clear_defaults(cls, values: Any) -> Any:
        # A rule with limits or a knee does not ask for the smallest student, so these two defaults do not apply to it.
        if isinstance(values, dict) and (values.get("at_most") or values.get("knee")):
            return {"smallest": None, "retention": None, **values}
        return values

    @model_validator(mode="after")
    def _check_directions(self) -> "Choose":
        for setting, names in (("smallest", (self.smallest,)), ("at_most", self.at_most)):
            for name in filter(None, names):
                if direction(name) != "minimize":
                    raise ValueError(
                        f"Choose.{setting}: {name} is not a metric to minimize; {did_you_mean(name, MINIMIZED)}"
                    )
        return self

    @property
    def cost(self) -> str:
        """The cost on the other axis of the front of `best`."""
        return self.smallest or "latency_ms"

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the rule reads, besides retention."""
        cost = (self.cost,) if self.smallest or self.knee else ()
        return tuple(dict.fromkeys((*cost, self.best, *self.at_most)))

    @property
    def compared(self) -> tuple[str, ...]:
        """The metrics whose Pareto front contains every trial that the rule may choose."""
        return tuple(dict.fromkeys((*self.metrics, "retention")))

    def misses(self, metrics: Mapping[str, float]) -> list[str]:
        """The requirements that a student with these metrics does not satisfy, in words; empty if it is good enough.

        Each one is a predicate without a subject, such as "has latency 6.00 ms (the rule allows at most 5.00 ms)".
        """
        misses = []
        share = metrics["retention"]
        if math.isnan(share):
            # Every comparison with nan is false: without this, such a student would miss nothing.
            return ["has outputs that are not numbers"]
        if self.retention is not None and share < self.retention:
            misses.append(f"keeps {share:.1%} of the teacher's quality (the rule requires {100 * self.retention:g}%)")
        for name, limit in self.at_most.items():
            if metrics[name] > limit:
                value, most = format_metric(name, metrics[name]), format_metric(name, limit)
                misses.append(f"has {noun(name)} {value} (the rule allows at most {most})")
        return misses

    def rank(self, records: Sequence[TrialRecord], knee_scores: Mapping[int, float] | None = None) -> list[TrialRecord]:
        """The completed trials that are good enough, in the order in which the rule prefers them.

        `knee_scores` maps a trial's number to its nearness to the knee. It is needed where `records` are only a part of
        the front, because the knee is a property of the whole front.
        """
        enough = [record for record in records if record.state == "completed" and not self.misses(record.metrics)]
        if self.knee:
            scores = self._knee_scores(enough) if knee_scores is None else knee_scores
            return sorted(enough, key=lambda record: (-scores[record.number], *self._sort_key(record, self.cost)))
        return sorted(enough, key=lambda record: self._sort_key(record, self.smallest or self.best))

    def rank_by_limits(self, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        """All completed trials: those that exceed the fewest limits first, and of these the best first.

        Trials whose outputs are not numbers come last.
        """
        completed = [record for record in records if record.state == "completed"]

        def key(record: TrialRecord) -> tuple[float, ...]:
            if math.isnan(record.metrics["retention"]):
                return (math.inf, record.number)
            return (self._count_exceeded_limits(record), *self._sort_key(record, self.best))

        return sorted(completed, key=key)

    def _knee_scores(self, records: Sequence[TrialRecord]) -> dict[int, float]:
        distances = knee_distances([record.metrics for record in records], self.best, self.cost)
        return dict(zip((record.number for record in records), distances, strict=True))

    def _count_exceeded_limits(self, record: TrialRecord) -> int:
        return len([name for name, limit in self.at_most.items() if record.metrics[name] > limit])

    def _sort_key(self, record: TrialRecord, first: str) -> tuple[float, ...]:
        # Between equal trials all compared metrics decide, so the first trial is always on their Pareto front. A sweep
        # keeps the weights of that front only: without this, a chosen student could have no weights.
        return (*(signed(record, name) for name in (first, self.best, *self.compared)), record.number)


@dataclass(frozen=True)
class Choice:
    """The outcome of a rule."""

    number: int | None
    """The number of the chosen trial; None when no student satisfies the rule."""
    satisfied: bool
    """Whether the chosen trial satisfies the rule."""
    sentence: str
    """The choice in words."""


def front_trials(records: Sequence[TrialRecord], objectives: Sequence[str]) -> set[int]:
    """The numbers of the completed trials on the Pareto front of these objectives."""
    completed = [record for record in records if record.state == "completed"]
    return {completed[index].number for index in pareto_front([record.metrics for record in completed], objectives)}


def candidates(records: Sequence[TrialRecord], rule: Choose, most: int) -> list[TrialRecord]:
    """At most `most` trials of the front that satisfy the rule, in its order; if none does, the one closest to it."""
    numbers = front_trials(records, rule.compared)
    on_front = [record for record in records if record.number in numbers]
    return (rule.rank(on_front) or rule.rank_by_limits(on_front)[:1])[:most]


def apply_rule(
    records: Sequence[TrialRecord],
    rule: Choose,
    teacher: Mapping[str, float],
    kind: str = "finished student",
    knee_scores: Mapping[int, float] | None = None,
) -> Choice:
    """Apply the rule to the completed trials.

    `teacher` are the teacher's metrics, `kind` is the noun for the trials in the sentence, and `knee_scores` are those
    of `Choose.rank`. Raises SpecError for a metric that the trials do not have.
    """
    completed = [record for record in records if record.state == "completed"]
    if not completed:
        return Choice(None, False, "No trial was completed, so there is no student to choose.")
    for name in rule.metrics:
        if name not in completed[0].metrics:
            raise SpecError(f"choose: the trials have no metric {name!r}; {did_you_mean(name, completed[0].metrics)}")
    ranked = rule.rank(completed, knee_scores)
    if ranked:
        best = ranked[0]
        reason = f"{_describe_candidates(rule, len(ranked), len(completed), kind)} trial {best.number} "
        reason += _describe_advantage(best, rule)
        sentence = f"Trial {best.number} was chosen: {reason}. {_compare_with_teacher(best, rule, teacher)}"
        return Choice(best.number, True, sentence)
    closest = rule.rank_by_limits(completed)
    none = f"No student {_describe_requirements(rule, 1)}"
    if rule.otherwise == "none":
        misses = [f"trial {r.number} {', '.join(rule.misses(r.metrics))}" for r in closest[:REPORTED_MISSES]]
        return Choice(None, False, f"{none}. Closest to the rule: {'; '.join(misses)}.")
    best = closest[0]
    sentence = f"{none}, so {_describe_fallback(rule)} was chosen: trial {best.number}. "
    return Choice(best.number, False, sentence + _compare_with_teacher(best, rule, teacher))


def signed(record: TrialRecord, name: str) -> float:
    """The value of a metric with the sign that makes less better."""
    return record.metrics[name] if direction(name) == "minimize" else -record.metrics[name]


def _describe_requirements(rule: Choose, students: int) -> str:
    """The requirements of the rule as a predicate, in the singular or the plural of `students`."""
    keep, have = ("keeps", "has") if students == 1 else ("keep", "have")
    parts = []
    if rule.retention is not None:
        parts.append(f"{keep} at least {100 * rule.retention:g}% of the teacher's quality")
    for name, limit in rule.at_most.items():
        parts.append(f"{have} {noun(name)} of at most {format_metric(name, limit)}")
    return " and ".join(parts)


def _describe_candidates(rule: Choose, enough: int, total: int, kind: str) -> str:
    """The beginning of the reason; the chosen trial follows as the subject."""
    kinds = kind if total == 1 else f"{kind}s"
    if rule.retention is None and not rule.at_most:
        return f"of {total} {kinds},"
    return f"{enough} of {total} {kinds} {_describe_requirements(rule, enough)}, and"


def _describe_advantage(record: TrialRecord, rule: Choose) -> str:
    if rule.knee:
        return f"is the closest to the knee of the front of {noun(rule.best)} over {noun(rule.cost)}"
    if rule.smallest is None:
        return f"has the best {noun(rule.best)}"
    smallest = format_metric(rule.smallest, record.metrics[rule.smallest])
    return f"has the smallest {noun(rule.smallest)} of these ({smallest})"


def _describe_fallback(rule: Choose) -> str:
    if rule.at_most:
        return f"the student with the best {noun(rule.best)} of those that exceed the fewest limits"
    return f"the student with the best {noun(rule.best)}"


def _compare_with_teacher(record: TrialRecord, rule: Choose, teacher: Mapping[str, float]) -> str:
    metrics = record.metrics
    what_it_does = f"keeps {metrics['retention']:.1%} of the teacher's quality"
    if "speedup" in metrics:  # unknown for a teacher that is a file
        what_it_does += f" and is {metrics['speedup']:.1f} times as fast as the teacher"
    what_it_does += "".join(f"; {_describe_form(metrics, teacher, form)}" for form in named_forms(record.costs))
    if rule.best not in teacher:
        return f"It {what_it_does}."
    ours, theirs = format_metric(rule.best, metrics[rule.best]), format_metric(rule.best, teacher[rule.best])
    return f"Its {noun(rule.best)} is {ours} (teacher: {theirs}); it {what_it_does}."


def _describe_form(metrics: Mapping[str, float], teacher: Mapping[str, float], form: Form) -> str:
    """How fast the student is in a form, compared with the teacher in the same form, as the end of a sentence."""
    latency, speedup = metric_name(form, "latency_ms"), metric_name(form, "speedup")
    ours = format_metric(latency, metrics[latency])
    if speedup not in metrics or latency not in teacher:  # the teacher has no such form, or is a file
        return f"in {form.label} it has latency {ours}"
    theirs = format_metric(latency, teacher[latency])
    times = f"{metrics[speedup]:.1f} times as fast as the teacher"
    return f"in {form.label} it has latency {ours} (teacher in {form.label}: {theirs}) and is {times}"
