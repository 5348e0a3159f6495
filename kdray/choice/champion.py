"""Which of two confirmed students is the better one: the registry's champion, or the one that a sweep has just chosen.

They may come from different sweeps, teachers and machines. So the newer sweep's rule is asked of both, on the same test
rows and against its own teacher; what cannot be compared so leaves the champion where it is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from kdray.choice.rule import Choose
from kdray.evaluation.formatting import format_metrics, heading
from kdray.evaluation.measuring import CPU_METRICS, SPEEDUP_METRICS
from kdray.evaluation.pareto import dominates
from kdray.evaluation.trial_record import TrialRecord

CLOCK_METRICS = (*CPU_METRICS, *CPU_METRICS.values(), *SPEEDUP_METRICS)
"""What depends on the machine and on how it was measured, and so is compared under the same conditions only."""
SHAPE_METRICS = ("parameters", "multiply_adds")


class RegisteredFigures(BaseModel):
    """A confirmed student's figures, as the tags of its version keep them."""

    model_config = ConfigDict(frozen=True)

    metric: str
    """What retention is of."""
    student: dict[str, float]
    """Its metrics on the test rows, averaged over the seeds, and its costs."""
    teacher: dict[str, float]
    """`metric` on the same rows, and costs."""
    teacher_weights: str
    test_rows: str
    measured: str
    """How the costs were taken, and on what."""

    def tags(self) -> dict[str, str]:
        """As tags of a version."""
        figures = self.model_dump(include={"metric", "student", "teacher"})
        named = {f"kdray.{name}": getattr(self, name) for name in ("teacher_weights", "test_rows", "measured")}
        return {"kdray.figures": json.dumps(figures), **named}

    @classmethod
    def read(cls, tags: Mapping[str, str]) -> "RegisteredFigures | None":
        """What the tags of a version say; None where nobody has written them, or not so."""
        try:
            named = {name: tags[f"kdray.{name}"] for name in ("teacher_weights", "test_rows", "measured")}
            return cls(**json.loads(tags["kdray.figures"]), **named)
        except (KeyError, TypeError, ValueError):
            return None

    def beside(self, other: "RegisteredFigures") -> dict[str, float]:
        """Its figures as they were, had it been measured beside the other one: against the same teacher.

        Two students of one shape are equally fast, whatever two clocks said of them.
        """
        figures = dict(self.student)
        if all(figures.get(name) == other.student.get(name) for name in SHAPE_METRICS):
            figures |= {name: other.student[name] for name in CLOCK_METRICS if name in other.student}
        taught = other.teacher[other.metric]
        figures["retention"] = figures[other.metric] / taught if taught else 0.0
        return figures | {
            name: other.teacher[of] / figures[of] for name, of in SPEEDUP_METRICS.items() if of in figures
        }


@dataclass(frozen=True)
class ChampionComparison:
    """A student that would be champion, by the rule of the sweep that chose it, and the champion there is."""

    rule: Choose
    newcomer: RegisteredFigures
    champion: RegisteredFigures | None
    """None where nothing is known of it."""

    def objection(self) -> str | None:
        """Why the champion stays, in words; None where the newcomer takes its place."""
        if self.champion is None:
            return "the champion has no figures to compare by"
        return self._incomparable(self.champion) or self._no_better(self.champion)

    def _incomparable(self, champion: RegisteredFigures) -> str | None:
        asked = self.rule.compared
        if champion.test_rows != self.newcomer.test_rows:
            return "they were measured on different test rows"
        clock = [heading(name) for name in asked if name in CLOCK_METRICS]
        if clock and champion.measured != self.newcomer.measured:
            return (
                f"the {' and '.join(clock)} of the champion cannot be compared, for it was measured otherwise "
                f"({champion.measured}; this one: {self.newcomer.measured})"
            )
        if "agreement" in asked and champion.teacher_weights != self.newcomer.teacher_weights:
            return "the champion's agreement is with another teacher"
        missing = [name for name in (self.newcomer.metric, *asked) if name not in champion.student]
        return f"nothing is known of the champion's {' and '.join(missing)}" if missing else None

    def _no_better(self, champion: RegisteredFigures) -> str | None:
        ours, theirs = self.newcomer.beside(self.newcomer), champion.beside(self.newcomer)
        if _ranks_first(self.rule, ours, theirs):
            return None
        shown = [format_metrics(figures, self.rule.compared) for figures in (ours, theirs)]
        return f"by the rule this one is no better on the same test rows: {shown[0]}, against {shown[1]}"


def _ranks_first(rule: Choose, ours: Mapping[str, float], theirs: Mapping[str, float]) -> bool:
    if rule.misses(theirs):
        return True
    if rule.knee:  # of two points no one is a bend
        return dominates(ours, theirs, (rule.best, rule.cost))
    both = [TrialRecord(number, {}, "completed", costs=dict(of)) for number, of in enumerate((theirs, ours))]
    return rule.ranked(both)[0].number == 1
