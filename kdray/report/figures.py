"""Figures: all values that a report shows, such as the trials, the front, the choice and the reasons for it.

Nothing is computed from the data here; the values come from the stages of the sweep or from its files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kdray.choice.controls import Control
from kdray.choice.verdict import Verdict
from kdray.evaluation.measuring import COST_METRICS, CPU_METRICS
from kdray.evaluation.trial_record import TrialRecord


@dataclass(frozen=True)
class Figures:
    """All values that a report shows."""

    name: str
    """The name of the sweep."""
    teacher: Mapping[str, float]
    """The teacher's metrics and costs, under the same names as those of a trial."""
    records: Sequence[TrialRecord]
    front: Sequence[int] = ()
    """The numbers of the trials on the Pareto front."""
    chosen: int | None = None
    """The number of the chosen trial; None where no student is chosen."""
    sentences: Sequence[str] = ()
    """The choice in words."""
    controls: Sequence[Control] = ()
    """The controls of the front, on the validation rows."""
    verdict: Verdict | None = None
    """The result of the confirmation."""
    objectives: Sequence[str] = ("accuracy", "latency_ms")
    searched: Sequence[str] = field(default=())
    """The dotted names of the searched settings."""
    importances: Mapping[str, float] = field(default_factory=dict)
    """Dotted name of a searched setting -> the share of the differences in quality that it explains."""
    times: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Stage -> its seconds, over all sessions."""
    origin: Mapping[str, str] = field(default_factory=dict, compare=False)
    """The command, the commit and the versions of the last session."""
    conditions: str = ""
    """How the costs were measured, and on which hardware."""

    @property
    def quality(self) -> str:
        """The first objective that is a quality metric."""
        return next((name for name in self.objectives if name not in COST_METRICS), "accuracy")

    @property
    def cost(self) -> str:
        """The first objective that is a cost."""
        return next((name for name in self.objectives if name in COST_METRICS), "latency_ms")

    @property
    def columns(self) -> list[str]:
        """The metrics that have a column in the table of trials: the usual ones, and all objectives."""
        on_cpu = ("cpu_latency_ms",) if "cpu_latency_ms" in self.costs else ()
        usual = (self.quality, "retention", "latency_ms", "speedup", *on_cpu, "parameters")
        return list(dict.fromkeys((*usual, *self.objectives)))

    @property
    def costs(self) -> list[str]:
        """The costs to show. Figures of the CPU are among them only where trials ran on another device."""
        # Without a GPU the CPU's figures equal the device's own, and would only repeat them.
        repeated = {cpu for own, cpu in CPU_METRICS.items() if self.teacher.get(cpu) in (None, self.teacher.get(own))}
        return [name for name in COST_METRICS if name not in repeated]

    def place(self, record: TrialRecord) -> str:
        """`chosen`, `front`, or the empty string for any other trial."""
        if record.number == self.chosen:
            return "chosen"
        return "front" if record.number in self.front else ""

    def by_quality(self) -> list[TrialRecord]:
        """The trials, the best quality first; trials that failed or have no quality are last."""
        return sorted(self.records, key=lambda record: (-self._sort_value(record), record.number))

    def _sort_value(self, record: TrialRecord) -> float:
        value = record.metrics.get(self.quality, math.nan)
        # NaN is neither smaller nor larger than any number, so it would leave the order undefined.
        return -math.inf if record.state == "failed" or math.isnan(value) else value
