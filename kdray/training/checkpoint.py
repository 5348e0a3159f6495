"""Checkpoints: the state of a training in one file, from which a training that was cut off continues.

The file begins with a checksum, so a damaged checkpoint is recognised and never used; `checkpoint_files` reads and
checks it. What a training computes between two checkpoints is in `fit`.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdray.errors import JobError, StorageError
from kdray.losses.distillation import Loss
from kdray.slots.job import NOTE, Report, Worker
from kdray.storage.mirror import fetch
from kdray.training.checkpoint_files import check_state, max_checkpoint_bytes, read_checkpoint, write_checkpoint
from kdray.training.settings import Training


@dataclass(frozen=True)
class Position:
    """The progress of a training after a step."""

    epoch: int = 0
    """Complete epochs before the current epoch."""
    batch: int = 0
    """Completed batches of the current epoch."""
    step: int = 0
    """Completed steps of the whole training."""


@dataclass
class RunningSums:
    """Sums since the last evaluation. They are tensors on the device, so that no step waits for the device."""

    rows: int = 0
    answers: int = 0
    norm: Tensor | float = 0.0
    """The sum of the gradient norms."""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """The sum of each loss term over the answers."""
    started: float = field(default_factory=time.perf_counter)

    def add_norm(self, norm: Tensor) -> None:
        """Add the norm of the gradient of one step."""
        self.norm = self.norm + norm

    def add_loss(self, loss: Loss, rows: int, answers: int) -> None:
        """Add the loss of rows of a step. `rows` is 0 if the rank had no row and took part for the others only."""
        self.rows += rows
        self.answers += answers
        for name, value in loss.terms.items():
            value = value if rows else torch.zeros_like(value)
            self.terms[name] = self.terms[name] + value if name in self.terms else value

    def state(self) -> dict[str, Any]:
        """The sums as a checkpoint contains them."""
        return {
            "rows": self.rows,
            "answers": self.answers,
            "norm": torch.as_tensor(self.norm).cpu(),
            "terms": {name: value.cpu() for name, value in self.terms.items()},
            "seconds": time.perf_counter() - self.started,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> "RunningSums":
        """The sums of a checkpoint, on this device."""
        return cls(
            rows=state["rows"],
            # A checkpoint from before tasks with several answers in a row does not count them.
            answers=state.get("answers", state["rows"]),
            norm=state["norm"].to(device),
            terms={name: value.to(device) for name, value in state["terms"].items()},
            # Clocks of two processes cannot be compared, so a checkpoint contains a duration.
            started=time.perf_counter() - state["seconds"],
        )

    def check_finite(self, where: str) -> None:
        """Raise JobError if a gradient since the last evaluation was not finite."""
        # An error of a job must be raised on every rank. The norm is the same on every rank, so it is.
        if not math.isfinite(float(self.norm)):
            raise JobError(
                f"the loss or its gradient was not finite (nan or inf) by {where}; try a lower learning rate."
            )

    def metrics(self, worker: Worker) -> Report:
        """The mean loss, the share of each term in it, and the speed, over all ranks. A collective call."""
        seconds = time.perf_counter() - self.started
        counts = {"rows": self.rows, "answers": self.answers}
        ranks = worker.all_gather(counts | {name: float(value) for name, value in self.terms.items()})
        total = {name: sum(rank[name] for rank in ranks) for name in ranks[0]}
        rows, answers = total.pop("rows"), total.pop("answers")
        loss = sum(total.values())
        shares = {f"share_{name}": value / loss if loss else 0.0 for name, value in total.items()}
        return {"train_loss": loss / answers, **shares, "examples_per_s": rows / seconds, "train_seconds": seconds}


class CheckpointManager:
    """The checkpoints of one training: knows when one is due, writes it, and restores a training from it."""

    def __init__(
        self,
        path: Path | None,
        training: Training,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        worker: Worker,
        objective: nn.Module | None = None,
    ) -> None:
        """`objective` has what a loss learns besides the model; None: nothing."""
        self.reports: list[Report] = []
        """All evaluations so far, including those before a restart."""
        self._path, self._training, self._worker = path, training, worker
        self._model, self._optimizer, self._objective = model, optimizer, objective
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether a checkpoint is due because `checkpoint_minutes` have passed since the last one."""
        minutes = self._training.checkpoint_minutes
        return self._path is not None and minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    def is_due_after_evaluation(self) -> bool:
        """Whether a checkpoint is due because of the number of evaluations."""
        every = self._training.checkpoint_evaluations
        return self._path is not None and every > 0 and len(self.reports) % every == 0

    def save(self, position: Position, sums: RunningSums) -> None:
        """Write a checkpoint; the previous one stays until the new one is complete. A collective call."""
        # Every rank draws its own dropout and has its own sums, so the checkpoint contains those of all ranks.
        ranks = self._worker.all_gather({"random": _random_states(self._worker), "sums": sums.state()})
        if self._path is not None and self._worker.rank == 0:
            models = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}
            if learnt := self._learnt_by_objective():
                models["objective"] = learnt
            write_checkpoint(self._path, {**models, "ranks": ranks, "reports": self.reports, "at": asdict(position)})
        self._saved_at = time.monotonic()

    def restore(self, whole: Callable[[], AbstractContextManager[None]] = nullcontext) -> tuple[Position, RunningSums]:
        """Load the checkpoint, and return where the training continues, with its sums.

        If there is no checkpoint, or a damaged one, the training starts at the beginning. `whole` gives a block in
        which model and optimizer have the form that a checkpoint has. A collective call.
        """
        has_file = self._path is not None and fetch(self._path).exists()
        with whole() if has_file else nullcontext():
            return self._restore(*self._read() if has_file else (None, ""))

    def _restore(self, state: dict[str, Any] | None, error: str) -> tuple[Position, RunningSums]:
        """The same with the state in the file; None: there is none that can be used, and why."""
        # All ranks must start at the same step, so one rank that cannot read the checkpoint decides for all of them.
        if not all(self._worker.all_gather(state is not None)):
            errors = [each for each in self._worker.all_gather(error) if each]
            self.reports = [{NOTE: f"{errors[0]} The training started again from the beginning."}] if errors else []
            return Position(), RunningSums()
        assert state is not None
        self._model.load_state_dict(state["model"])
        if self._objective is not None:
            self._objective.load_state_dict(state.get("objective", {}))
        self._optimizer.load_state_dict(state["optimizer"])
        self.reports = state["reports"]
        return Position(**state["at"]), self._restore_rank(state["ranks"])

    def _read(self) -> tuple[dict[str, Any] | None, str]:
        """The state in the checkpoint file, or None and why it cannot be used."""
        assert self._path is not None
        try:
            state = read_checkpoint(self._path, max_checkpoint_bytes(self._model))
            check_state(state, self._path, self._model, self._optimizer, self._learnt_by_objective())
            Position(**state["at"])
        except TypeError:  # the position has other fields
            return None, f"{self._path}: the checkpoint does not fit this training (at)."
        except (StorageError, OSError) as error:
            return None, str(error)
        return state, ""

    def _learnt_by_objective(self) -> dict[str, Tensor]:
        return {} if self._objective is None else self._objective.state_dict()

    def _restore_rank(self, ranks: list[dict[str, Any]]) -> RunningSums:
        """Restore the random states of this rank, and return its sums.

        The states of a checkpoint from another number of ranks belong to no rank of this slot. They are not restored:
        each rank draws its own dropout. A checkpoint from a CPU has no random state for a GPU.
        """
        worker = self._worker
        if len(ranks) != worker.world:
            return RunningSums()
        random = ranks[worker.rank]["random"]
        torch.set_rng_state(random["cpu"])
        if worker.device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], worker.device)
        return RunningSums.from_state(ranks[worker.rank]["sums"], worker.device)


def _random_states(worker: Worker) -> dict[str, Tensor]:
    """The states of the random generators from which this rank draws its dropout."""
    cuda = {"cuda": torch.cuda.get_rng_state(worker.device)} if worker.device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **cuda}
