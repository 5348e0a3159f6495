"""One trial as a row: what the ledger keeps, the tracker logs, the screen and the report show, the choice compares."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

State: TypeAlias = Literal["running", "completed", "stopped", "failed"]
"""`stopped`: early stopping ended it. `failed`: an error, a number that is not finite, or a worker that kept dying."""


@dataclass(frozen=True)
class TrialRecord:
    """All that is known of one trial; immutable, the ledger hands out a new one after each change."""

    number: int
    params: dict[str, Any]
    """The searched settings, by dotted name."""
    state: State = "running"
    history: tuple[dict[str, float], ...] = ()
    """The metrics of each evaluation in order; every one has `epoch` (from 1, may be fractional) and `step`."""
    costs: dict[str, float] = field(default_factory=dict)
    """Of its architecture, known before training: latency_ms, parameters, size_mb, speedup."""
    error: str | None = None
    attempts: int = 1
    run_id: str | None = None
    """MLflow's."""
    started: float = 0.0
    """Seconds since the epoch; `ended` is 0 while it runs."""
    ended: float = 0.0
    remarks: tuple[str, ...] = ()
    """What befell it and did not end it, in sentences."""
    host: str = ""
    """Where it ran last; of a slot that spans several machines all of them, by rank."""
    passed: int = 0
    """After how many evaluations early stopping has let it go on; 0 before the first such verdict."""
    title: str = ""
    """What it is, where it is no trial of the search."""

    @property
    def metrics(self) -> dict[str, float]:
        """The last evaluation's metrics, and the costs."""
        return {**(self.history[-1] if self.history else {}), **self.costs}
