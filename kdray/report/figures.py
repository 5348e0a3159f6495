"""All that a report shows: which trials there are, which of them are on the front, which one is chosen, and why.

Nothing of that is worked out here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kdray.choice.controls import Control
from kdray.choice.verdict import Verdict
from kdray.evaluation.measuring import COST_METRICS, CPU_METRICS
from kdray.evaluation.trial_record import TrialRecord


@dataclass(frozen=True)
class Figures:
    """All that the report shows."""

    name: str
    """The sweep's."""
    teacher: Mapping[str, float]
    """Its metrics and costs, under the names that trials have them."""
    records: Sequence[TrialRecord]
    front: Sequence[int] = ()
    """The numbers of the trials on the Pareto front."""
    chosen: int | None = None
    sentences: Sequence[str] = ()
    """The choice in words."""
    controls: Sequence[Control] = ()
    """The front's architectures without distillation, and with it as it comes, on the validation rows."""
    verdict: Verdict | None = None
    """What confirmation came to."""
    objectives: Sequence[str] = ("accuracy", "latency_ms")
    searched: Sequence[str] = field(default=())
    """The dotted names of the searched settings."""
    importances: Mapping[str, float] = field(default_factory=dict)
    """Dotted name of a searched setting -> how much of the differences in quality it explains."""
    times: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Seconds of each stage, over all sessions."""
    origin: Mapping[str, str] = field(default_factory=dict, compare=False)
    """The command, the commit and the versions."""
    conditions: str = ""
    """How latency and the like were measured, and on what."""

    @property
    def quality(self) -> str:
        """The first objective that says how good a student is."""
        return next((name for name in self.objectives if name not in COST_METRICS), "accuracy")

    @property
    def cost(self) -> str:
        """The first objective that says what a student costs."""
        return next((name for name in self.objectives if name in COST_METRICS), "latency_ms")

    @property
    def columns(self) -> list[str]:
        """The metrics worth a column: the objectives, then what everyone asks for."""
        on_cpu = ("cpu_latency_ms",) if "cpu_latency_ms" in self.costs else ()
        usual = (self.quality, "retention", "latency_ms", "speedup", *on_cpu, "parameters")
        return list(dict.fromkeys((*usual, *self.objectives)))

    @property
    def costs(self) -> list[str]:
        """The costs worth a line: the CPU's own only where something else was measured beside it."""
        alike = {cpu for own, cpu in CPU_METRICS.items() if self.teacher.get(cpu) in (None, self.teacher.get(own))}
        return [name for name in COST_METRICS if name not in alike]

    def place(self, record: TrialRecord) -> str:
        """`chosen`, `front`, or neither."""
        return "chosen" if record.number == self.chosen else "front" if record.number in self.front else ""

    def ranked(self) -> list[TrialRecord]:
        """The trials, the best quality first, those without a result last."""
        return sorted(self.records, key=lambda record: (-self._worth(record), record.number))

    def _worth(self, record: TrialRecord) -> float:
        value = record.metrics.get(self.quality, float("nan"))
        return value if record.state != "failed" and value == value else float("-inf")
