"""The choice: which of the finished students is shipped, by the user's rule, and why in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from kdray.errors import SpecError
from kdray.pareto import direction, front
from kdray.record import TrialRecord
from kdray.settings import Settings


class Choose(Settings):
    """The smallest of something that keeps enough of the teacher; else, if allowed, the best of something.

    `Choose()` reads: the smallest latency that keeps 97 % of the teacher, else the best accuracy.
    """

    smallest: str | None = "latency_ms"
    retention: float = Field(0.97, gt=0)
    """Least share of the teacher's quality that the student keeps."""
    best: str = "accuracy"
    """What decides when `smallest` is None, among equals, and when no student keeps enough."""
    otherwise: Literal["best", "none"] = "best"
    """When no student keeps enough: take the best all the same and say so, or none (exit code 3)."""

    @model_validator(mode="after")
    def _directions(self) -> "Choose":
        if self.smallest is not None and direction(self.smallest) != "minimize":
            raise ValueError(
                f"Choose.smallest: more {self.smallest} is better, so its smallest is the worst; name a cost."
            )
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the rule looks at."""
        return tuple(name for name in (self.smallest, self.best) if name)

    @property
    def compared(self) -> tuple[str, ...]:
        """The metrics whose front holds whoever may be chosen."""
        return tuple(dict.fromkeys((*self.metrics, "retention")))


@dataclass(frozen=True)
class Choice:
    """The outcome of a rule."""

    number: int | None
    """The chosen trial; None when no student satisfies the rule."""
    satisfied: bool
    sentence: str


def front_numbers(records: Sequence[TrialRecord], objectives: Sequence[str]) -> set[int]:
    """The numbers of the completed trials that no other completed trial beats in all objectives."""
    completed = [record for record in records if record.state == "completed"]
    return {completed[index].number for index in front([record.metrics for record in completed], objectives)}


def chosen(records: Sequence[TrialRecord], rule: Choose, teacher: Mapping[str, float]) -> Choice:
    """Apply the rule to the completed trials. Raises SpecError for a metric that they do not have."""
    completed = [record for record in records if record.state == "completed"]
    if not completed:
        return Choice(None, False, "No trial ran to its end, so there is no student to choose.")
    for name in rule.metrics:
        if name not in completed[0].metrics:
            raise SpecError(f"choose: no metric {name!r}; there are {', '.join(sorted(completed[0].metrics))}.")
    enough = [record for record in completed if record.metrics["retention"] >= rule.retention]
    first, second = (rule.smallest, rule.best) if enough and rule.smallest else (rule.best, rule.smallest or rule.best)
    # Retention among equals: so whoever is chosen is on the front of `compared`, whose weights are kept.
    record = min(
        enough or completed,
        key=lambda r: (_signed(r, first), _signed(r, second), _signed(r, "retention"), r.number),
    )
    if not enough and rule.otherwise == "none":
        return Choice(None, False, f"No student keeps {100 * rule.retention:g}% of the teacher: {_nearest(record)}.")
    return Choice(record.number, bool(enough), _sentence(record, rule, len(enough), len(completed), teacher))


def _signed(record: TrialRecord, name: str) -> float:
    return record.metrics[name] if direction(name) == "minimize" else -record.metrics[name]


def _nearest(record: TrialRecord) -> str:
    return f"the nearest is trial {record.number}, which keeps {record.metrics['retention']:.1%}"


def _sentence(record: TrialRecord, rule: Choose, enough: int, completed: int, teacher: Mapping[str, float]) -> str:
    metrics = record.metrics
    what = (
        f"{rule.best} {metrics[rule.best]:.4f} against the teacher's {teacher[rule.best]:.4f} "
        f"(keeps {metrics['retention']:.1%}), {metrics['speedup']:.1f} times faster"
        if rule.best in teacher
        else f"it keeps {metrics['retention']:.1%} of the teacher and is {metrics['speedup']:.1f} times faster"
    )
    verb = "keeps" if enough == 1 else "keep"
    keep = f"{enough} of {completed} finished students {verb} at least {100 * rule.retention:g}% of the teacher"
    if not enough:
        none = f"No student keeps {100 * rule.retention:g}% of the teacher, so the best {rule.best} was taken"
        return f"{none}: trial {record.number}, {what}."
    if rule.smallest is None:
        return f"Trial {record.number} was chosen: {keep}, and it has the best {rule.best}: {what}."
    smallest = f"the smallest {rule.smallest} of them ({metrics[rule.smallest]:.4g})"
    return f"Trial {record.number} was chosen: {keep}, and it has {smallest}: {what}."
