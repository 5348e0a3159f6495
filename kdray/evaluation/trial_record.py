"""One trial as a record: the ledger stores it, the tracker logs it, the report prints it, the choice compares it."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

State: TypeAlias = Literal["running", "completed", "stopped", "failed"]
"""`stopped`: early stopping ended the trial. `failed`: an error, a metric that is not finite, or a worker that died in
every attempt ended it."""


@dataclass(frozen=True)
class TrialRecord:
    """Everything that is known about one trial. It is immutable: the ledger returns a new record after each change."""

    number: int
    params: dict[str, Any]
    """The values of the searched settings, by dotted name."""
    state: State = "running"
    history: tuple[dict[str, float], ...] = ()
    """The metrics of each evaluation, in order. Each has `epoch` (the epochs trained so far, may be fractional) and
    `step`."""
    costs: dict[str, float] = field(default_factory=dict)
    """The costs of the trial's architecture, known before training: latency_ms, parameters, size_mb, speedup, ..."""
    error: str | None = None
    """Why the trial failed."""
    attempts: int = 1
    """How often the trial was started or continued."""
    run_id: str | None = None
    """The id of the trial's MLflow run."""
    started: float = 0.0
    """When the last attempt started, in seconds since the Unix epoch."""
    ended: float = 0.0
    """When the trial ended, in seconds since the Unix epoch; 0 while it runs."""
    remarks: tuple[str, ...] = ()
    """Events that did not end the trial, such as a damaged checkpoint, one sentence each."""
    host: str = ""
    """The machine on which the trial ran last; all machines in rank order if the slot spans several."""
    continued_after: int = 0
    """The number of evaluations after which early stopping last let the trial continue; 0 before the first decision."""
    title: str = ""
    """What the record describes, if it is not a trial of the search."""

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the last evaluation, and the costs."""
        return {**(self.history[-1] if self.history else {}), **self.costs}
