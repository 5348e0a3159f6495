"""Which of two confirmed students is the better one: the registry's champion, or the one that a sweep has just chosen.

They may come from different sweeps, teachers and machines. So both are compared by the rule of the newer sweep, on the
same test rows and against the newer teacher. If they cannot be compared in this way, the champion stays.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from kdray.choice.rule import Choose
from kdray.evaluation.formatting import format_metrics, heading
from kdray.evaluation.measuring import CPU_METRICS, SPEEDUP_METRICS
from kdray.evaluation.pareto import direction, dominates
from kdray.evaluation.quality import retention
from kdray.evaluation.trial_record import TrialRecord
from kdray.forms.metrics import FORM_METRICS
from kdray.tasks.counts import Metric

CLOCK_METRICS = (
    *CPU_METRICS,
    *CPU_METRICS.values(),
    *SPEEDUP_METRICS,
    *(name for name, form in FORM_METRICS.items() if form.base in CPU_METRICS),
)
"""The metrics that depend on the machine and on how they are measured: comparable under the same conditions only."""
SHAPE_METRICS = ("parameters", "multiply_adds")
"""Two students that agree in these have the same architecture, for the purpose of timing."""
_TAG_FIELDS = ("teacher_weights", "test_rows", "measured")
"""The fields that are a tag of their own. The others are JSON in the tag kdray.figures."""


class RegisteredFigures(BaseModel):
    """The figures of a confirmed student, as stored in the tags of its version."""

    model_config = ConfigDict(frozen=True)

    metric: str
    """The name of the quality metric, of which retention is the ratio."""
    student: dict[str, float]
    """The student's metrics on the test rows, averaged over the seeds, and its costs."""
    teacher: dict[str, float]
    """The teacher's `metric` on the same rows, and its costs."""
    teacher_weights: str
    """The fingerprint of the teacher's weights."""
    test_rows: str
    """The fingerprint of the test rows."""
    measured: str
    """How the costs were measured, and on which hardware."""

    def tags(self) -> dict[str, str]:
        """The figures as tags of a version."""
        figures = self.model_dump(include={"metric", "student", "teacher"})
        return {"kdray.figures": json.dumps(figures), **{f"kdray.{name}": getattr(self, name) for name in _TAG_FIELDS}}

    @classmethod
    def read(cls, tags: Mapping[str, str]) -> "RegisteredFigures | None":
        """The figures in the tags of a version; None where the tags are missing or cannot be read."""
        try:
            fields = {name: tags[f"kdray.{name}"] for name in _TAG_FIELDS}
            return cls(**json.loads(tags["kdray.figures"]), **fields)
        except (KeyError, TypeError, ValueError):
            return None

    def beside(self, other: "RegisteredFigures") -> dict[str, float]:
        """The figures that the student would have if it had been measured together with `other`, with its teacher."""
        figures = dict(self.student)
        # Two students of one shape are equally fast. A difference between their latencies is noise of two measurements.
        if all(figures.get(name) == other.student.get(name) for name in SHAPE_METRICS):
            figures |= {name: other.student[name] for name in CLOCK_METRICS if name in other.student}
        metric = Metric(other.metric, direction(other.metric))
        figures["retention"] = retention(metric, figures[other.metric], other.teacher[other.metric])
        for speedup, latency in SPEEDUP_METRICS.items():
            figures.pop(speedup, None)
            if latency in figures and latency in other.teacher:
                figures[speedup] = other.teacher[latency] / figures[latency]
        return figures


@dataclass(frozen=True)
class ChampionComparison:
    """A newly chosen student and the present champion, compared by the rule of the newer sweep."""

    rule: Choose
    newcomer: RegisteredFigures
    champion: RegisteredFigures | None
    """None where the champion has no figures."""

    def objection(self) -> str | None:
        """Why the champion stays, in words; None if the newcomer takes its place."""
        if self.champion is None:
            return "the champion has no figures to compare with"
        return self._incomparability(self.champion) or self._inferiority(self.champion)

    def _incomparability(self, champion: RegisteredFigures) -> str | None:
        """Why the two students cannot be compared; None if they can."""
        names = self.rule.compared
        if champion.test_rows != self.newcomer.test_rows:
            return "the two students were measured on different test rows"
        clock_metrics = [heading(name) for name in names if name in CLOCK_METRICS]
        if clock_metrics and champion.measured != self.newcomer.measured:
            return (
                f"the {' and '.join(clock_metrics)} of the champion cannot be compared, because the conditions differ "
                f"(champion: {champion.measured}; new student: {self.newcomer.measured})"
            )
        if "agreement" in names and champion.teacher_weights != self.newcomer.teacher_weights:
            return "the champion's agreement is with another teacher"
        missing = [name for name in (self.newcomer.metric, *names) if name not in champion.student]
        return f"the champion's figures do not include {' and '.join(missing)}" if missing else None

    def _inferiority(self, champion: RegisteredFigures) -> str | None:
        """Why the newcomer is not better; None if it is."""
        ours, theirs = self.newcomer.beside(self.newcomer), champion.beside(self.newcomer)
        if _is_better(self.rule, ours, theirs):
            return None
        new, old = (format_metrics(figures, self.rule.compared) for figures in (ours, theirs))
        return f"by the rule the new student is no better on the same test rows: {new}; champion: {old}"


def _is_better(rule: Choose, newcomer: Mapping[str, float], champion: Mapping[str, float]) -> bool:
    if rule.misses(champion):
        return True
    # A front of two points has no knee. The newcomer must then win in quality or cost without losing in the other.
    if rule.knee:
        return dominates(newcomer, champion, (rule.best, rule.cost))
    # The smaller number wins a tie, so the champion has it.
    old = TrialRecord(0, {}, "completed", costs=dict(champion))
    new = TrialRecord(1, {}, "completed", costs=dict(newcomer))
    return rule.rank([old, new])[0] is new
