"""The choice: which of the finished students is shipped, by the user's rule, and why in words.

A rule is asked twice: of the search's figures, to say who is a candidate, and of the confirmed ones, to say who is
chosen. Which rows and seeds the figures come from makes no difference here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from kdray.errors import SpecError, did_you_mean
from kdray.evaluation.formatting import format_metric, heading
from kdray.evaluation.pareto import MINIMIZED, direction, knee_distances, pareto_front
from kdray.evaluation.trial_record import TrialRecord
from kdray.settings import Settings


class Choose(Settings):
    """The smallest of something that keeps enough of the teacher; the best within limits; or the front's knee.

    `Choose()` reads: the smallest latency that keeps 97 % of the teacher, else the best accuracy.
    `Choose(best="accuracy", at_most={"latency_ms": 5, "size_mb": 30})`: the best accuracy within these limits.
    `Choose(knee=True)`: where the front bends: beyond it, quality costs more than it did before.
    """

    smallest: str | None = "latency_ms"
    """None, where `at_most` or `knee` is given and this is not: it is no question of the smallest."""
    retention: float | None = Field(0.97, gt=0)
    """Least share of the teacher's quality that the student keeps; None, as `smallest`, with `at_most` and `knee`."""
    best: str = "accuracy"
    """What decides when `smallest` is None, among equals, and when no student is good enough."""
    at_most: dict[str, float] = Field(default_factory=dict)
    """Cost -> the most of it that the student may have."""
    knee: bool = False
    """Take the knee of the front of `best` over `smallest` (latency_ms where that is None)."""
    otherwise: Literal["best", "none"] = "best"
    """When no student is good enough: take the best all the same and say so, or none (exit code 3)."""

    @model_validator(mode="before")
    @classmethod
    def _another_question(cls, values: Any) -> Any:
        if isinstance(values, dict) and (values.get("at_most") or values.get("knee")):
            return {"smallest": None, "retention": None, **values}
        return values

    @model_validator(mode="after")
    def _directions(self) -> "Choose":
        for where, names in (("smallest", (self.smallest,)), ("at_most", self.at_most)):
            for name in filter(None, names):
                if direction(name) != "minimize":
                    raise ValueError(
                        f"Choose.{where}: {name} is nothing of which less is better; {did_you_mean(name, MINIMIZED)}"
                    )
        return self

    @property
    def cost(self) -> str:
        """What is weighed against `best`."""
        return self.smallest or "latency_ms"

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the rule looks at."""
        cost = (self.cost,) if self.smallest or self.knee else ()
        return tuple(dict.fromkeys((*cost, self.best, *self.at_most)))

    @property
    def compared(self) -> tuple[str, ...]:
        """The metrics whose front holds whoever may be chosen."""
        return tuple(dict.fromkeys((*self.metrics, "retention")))

    def misses(self, metrics: Mapping[str, float]) -> list[str]:
        """What a student with these metrics lacks, in words; nothing where it is good enough."""
        keeps = metrics["retention"]
        said = []
        if self.retention is not None and keeps < self.retention:
            said.append(f"keeps {keeps:.1%} of the teacher ({100 * self.retention:g}% asked for)")
        return said + [
            f"has {format_metric(name, metrics[name])} {heading(name)} (at most {format_metric(name, limit)} asked for)"
            for name, limit in self.at_most.items()
            if metrics[name] > limit
        ]

    def ranked(self, records: Sequence[TrialRecord], bends: Mapping[int, float] | None = None) -> list[TrialRecord]:
        """The completed trials that are good enough, the one to choose first.

        Which of them is nearest to the knee is a matter of the whole front: `bends` tells it, by number, where these
        are some of it.
        """
        enough = [record for record in records if record.state == "completed" and not self.misses(record.metrics)]
        if self.knee:
            bends = self._bends(enough) if bends is None else bends
            return sorted(enough, key=lambda r: (-bends[r.number], *self._order(r, self.cost)))
        return sorted(enough, key=lambda r: self._order(r, self.smallest or self.best))

    def _bends(self, records: Sequence[TrialRecord]) -> dict[int, float]:
        distances = knee_distances([record.metrics for record in records], self.best, self.cost)
        return dict(zip((record.number for record in records), distances, strict=True))

    def nearest(self, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        """All completed trials, those that miss least of the rule first, and of those the best."""
        completed = [record for record in records if record.state == "completed"]
        return sorted(completed, key=lambda r: (len(self._limits(r)), *self._order(r, self.best)))

    def _limits(self, record: TrialRecord) -> list[str]:
        return [name for name, limit in self.at_most.items() if record.metrics[name] > limit]

    def _order(self, record: TrialRecord, first: str) -> tuple[float, ...]:
        # All that is compared, among equals: so whoever comes first is on that front, whose weights are kept.
        return (*(_signed(record, name) for name in (first, self.best, *self.compared)), record.number)


@dataclass(frozen=True)
class Choice:
    """The outcome of a rule."""

    number: int | None
    """The chosen trial; None when no student satisfies the rule."""
    satisfied: bool
    sentence: str


def front_trials(records: Sequence[TrialRecord], objectives: Sequence[str]) -> set[int]:
    """The numbers of the completed trials that no other completed trial beats in all objectives."""
    completed = [record for record in records if record.state == "completed"]
    return {completed[index].number for index in pareto_front([record.metrics for record in completed], objectives)}


def candidates(records: Sequence[TrialRecord], rule: Choose, most: int) -> list[TrialRecord]:
    """Who may be chosen: the front's members that satisfy the rule, best first; the nearest where none does."""
    on_front = front_trials(records, rule.compared)
    able = [record for record in records if record.number in on_front]
    return (rule.ranked(able) or rule.nearest(able)[:1])[:most]


def apply_rule(
    records: Sequence[TrialRecord],
    rule: Choose,
    teacher: Mapping[str, float],
    kind: str = "finished student",
    bends: Mapping[int, float] | None = None,
) -> Choice:
    """Apply the rule to the completed trials; `kind` is what they are in the sentence, `bends` as `Choose.ranked` says.

    Raises SpecError for a metric that they do not have.
    """
    completed = [record for record in records if record.state == "completed"]
    if not completed:
        return Choice(None, False, "No trial ran to its end, so there is no student to choose.")
    for name in rule.metrics:
        if name not in completed[0].metrics:
            raise SpecError(f"choose: no metric {name!r}; there are {', '.join(sorted(completed[0].metrics))}.")
    ranked = rule.ranked(completed, bends)
    if ranked:
        why = f"{_enough(rule, len(ranked), len(completed), kind)}, and it {_reason(ranked[0], rule)}"
        return Choice(
            ranked[0].number, True, f"Trial {ranked[0].number} was chosen: {why}: {_what(ranked[0], rule, teacher)}."
        )
    near = rule.nearest(completed)
    if rule.otherwise == "none":
        told = "; ".join(f"trial {r.number} {', '.join(rule.misses(r.metrics))}" for r in near[:3])
        return Choice(None, False, f"No student {_asked(rule)}. The nearest: {told}.")
    none = f"No student {_asked(rule)}, so the best {rule.best} was taken"
    return Choice(near[0].number, False, f"{none}: trial {near[0].number}, {_what(near[0], rule, teacher)}.")


def _signed(record: TrialRecord, name: str) -> float:
    return record.metrics[name] if direction(name) == "minimize" else -record.metrics[name]


def _asked(rule: Choose, verb: str = "keeps", has: str = "has") -> str:
    """What the rule asks of every student."""
    parts = [] if rule.retention is None else [f"{verb} {100 * rule.retention:g}% of the teacher"]
    parts += [f"{has} at most {format_metric(name, limit)} {heading(name)}" for name, limit in rule.at_most.items()]
    return " and ".join(parts) or f"{has} what was asked for"


def _enough(rule: Choose, enough: int, of: int, kind: str) -> str:
    if rule.retention is None and not rule.at_most:
        return f"there are {of} {kind}s"
    asked = _asked(rule, *(("keeps at least", "has") if enough == 1 else ("keep at least", "have")))
    return f"{enough} of {of} {kind}{'s' * (of > 1)} {asked}"


def _reason(record: TrialRecord, rule: Choose) -> str:
    if rule.knee:
        return f"lies nearest to where the front of {heading(rule.best)} over {heading(rule.cost)} bends"
    if rule.smallest is None:
        return f"has the best {rule.best}"
    smallest = format_metric(rule.smallest, record.metrics[rule.smallest])
    return f"has the smallest {heading(rule.smallest)} of them ({smallest})"


def _what(record: TrialRecord, rule: Choose, teacher: Mapping[str, float]) -> str:
    metrics = record.metrics
    if rule.best in teacher:
        return (
            f"{rule.best} {metrics[rule.best]:.4f} against the teacher's {teacher[rule.best]:.4f} "
            f"(keeps {metrics['retention']:.1%}), {metrics['speedup']:.1f} times faster"
        )
    return f"it keeps {metrics['retention']:.1%} of the teacher and is {metrics['speedup']:.1f} times faster"
