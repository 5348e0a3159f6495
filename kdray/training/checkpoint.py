"""Checkpoints: the state of a cut-off training in one file, which is whole and as it was written, or is not used.

What belongs into a state is `training`'s business, when one is written, too.
"""

import hashlib
import io
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdray.errors import JobError, StorageError
from kdray.losses.distillation import Loss
from kdray.slots.job import NOTE, Report, Worker
from kdray.storage.files import replace_file
from kdray.storage.mirror import fetch
from kdray.training.settings import Training

DIGEST_BYTES = hashlib.sha256().digest_size


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values behind their SHA-256; what was there stays until the new file is whole."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with replace_file(path) as temporary, temporary.open("wb") as file:
        file.write(hashlib.sha256(buffer.getbuffer()).digest())
        file.write(buffer.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in this file. Raises StorageError when it is not what was written."""
    data = memoryview(path.read_bytes())
    if hashlib.sha256(data[DIGEST_BYTES:]).digest() != bytes(data[:DIGEST_BYTES]):
        raise StorageError(f"{path}: the checkpoint is damaged: its contents do not match its checksum.")
    state: dict[str, Any] = torch.load(io.BytesIO(data[DIGEST_BYTES:]), map_location="cpu", weights_only=True)
    return state


@dataclass(frozen=True)
class Position:
    """How far a training is, after a step."""

    epoch: int = 0
    """Whole epochs before this one."""
    batch: int = 0
    """Batches of this epoch already done."""
    step: int = 0


@dataclass
class RunningSums:
    """What has been summed up since the last evaluation; tensors, so that no step waits for a device."""

    rows: int = 0
    norm: Tensor | float = 0.0
    terms: dict[str, Tensor] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def add(self, loss: Loss, rows: int, norm: Tensor) -> None:
        """A step's; no `rows`: the rank had none, and computed what it did for the others' sake."""
        self.rows += rows
        self.norm = self.norm + norm
        for name, value in loss.terms.items():
            value = value if rows else torch.zeros_like(value)
            self.terms[name] = self.terms[name] + value if name in self.terms else value

    def state(self) -> dict[str, Any]:
        """As it is kept in a checkpoint."""
        return {
            "rows": self.rows,
            "norm": torch.as_tensor(self.norm).cpu(),
            "terms": {name: value.cpu() for name, value in self.terms.items()},
            "seconds": time.perf_counter() - self.started,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> "RunningSums":
        terms = {name: value.to(device) for name, value in state["terms"].items()}
        return cls(state["rows"], state["norm"].to(device), terms, time.perf_counter() - state["seconds"])

    def check_finite(self, where: str) -> None:
        """Raise JobError once a gradient was not finite; the norm is the same on every rank."""
        if not math.isfinite(float(self.norm)):
            raise JobError(
                f"the loss or its gradient was not finite (nan or inf) by {where}; try a lower learning rate."
            )

    def metrics(self, worker: Worker) -> Report:
        """Mean loss, each term's share of it, and speed, over all ranks."""
        seconds = time.perf_counter() - self.started
        ranks = worker.all_gather({"rows": self.rows} | {name: float(value) for name, value in self.terms.items()})
        total = {name: sum(rank[name] for rank in ranks) for name in ranks[0]}
        rows = total.pop("rows")
        loss = sum(total.values())
        shares = {f"share_{name}": value / loss if loss else 0.0 for name, value in total.items()}
        return {"train_loss": loss / rows, **shares, "examples_per_s": rows / seconds, "train_seconds": seconds}


class CheckpointKeeper:
    """The checkpoints of one training: when they are due, what they hold, and what becomes of them."""

    def __init__(
        self, path: Path | None, training: Training, model: nn.Module, optimizer: torch.optim.Optimizer, worker: Worker
    ) -> None:
        self.path, self.training, self.model, self.optimizer, self.worker = path, training, model, optimizer, worker
        self.reports: list[Report] = []
        """All evaluations so far, those before a restart too."""
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Whether the clock asks for a checkpoint."""
        minutes = self.training.checkpoint_minutes
        return self.path is not None and minutes > 0 and time.monotonic() - self._saved >= 60 * minutes

    def due_after_evaluation(self) -> bool:
        """Whether one is due now that an evaluation has been made."""
        every = self.training.checkpoint_evaluations
        return self.path is not None and every > 0 and len(self.reports) % every == 0

    def save(self, at: Position, sums: RunningSums) -> None:
        """Write a checkpoint; the one before it stays until this one is whole. A collective call."""
        ranks = self.worker.all_gather({"random": _random_states(self.worker), "sums": sums.state()})
        if self.path is not None and self.worker.rank == 0:
            models = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            write_checkpoint(self.path, {**models, "ranks": ranks, "reports": self.reports, "at": asdict(at)})
        self._saved = time.monotonic()

    def restore(self) -> tuple[Position, RunningSums]:
        """Where to start: where the checkpoint was written, or at the beginning. One that is damaged is not used."""
        if self.path is None or not self.worker.broadcast(fetch(self.path).exists()):
            return Position(), RunningSums()
        try:
            state = read_checkpoint(self.path)
        except (StorageError, OSError) as error:
            self.reports = [{NOTE: f"{error} The training began again from its start."}]
            return Position(), RunningSums()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.reports = state["reports"]
        return Position(**state["at"]), self._own_part(state["ranks"])

    def _own_part(self, ranks: list[dict[str, Any]]) -> RunningSums:
        """What this rank goes on with. With another number of ranks, or from a CPU on a GPU, no dropout is as it was:
        each draws its own."""
        worker = self.worker
        if len(ranks) != worker.world:
            return RunningSums()
        random = ranks[worker.rank]["random"]
        torch.set_rng_state(random["cpu"])
        if worker.device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], worker.device)
        return RunningSums.from_state(ranks[worker.rank]["sums"], worker.device)


def _random_states(worker: Worker) -> dict[str, Tensor]:
    """What this rank draws its dropout from."""
    cuda = {"cuda": torch.cuda.get_rng_state(worker.device)} if worker.device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **cuda}
