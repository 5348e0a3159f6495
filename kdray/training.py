"""fit(): the one loop that trains teachers and students alike.

It knows models, rows and losses. What a loss compares stands in `losses`, what an evaluation measures is given to it,
who stops it early is asked through the worker, and how a checkpoint lies on disk is `checkpoint`'s business.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdray.checkpoint import read_checkpoint, write_checkpoint
from kdray.errors import JobError, StorageError
from kdray.losses.distillation import Loss
from kdray.mirror import fetched
from kdray.settings import Settings
from kdray.tokens import Batch, Rows, epoch_batches
from kdray.worker import NOTE, Ask, Report, Worker

LossOf = Callable[[Tensor, Batch], Loss]
"""From the model's logits (B x C) and the batch to the loss of each example."""

FINITE_CHECK_STEPS = 50  # on a GPU each check waits for the device

WITHOUT_EFFECT = ("checkpoint_minutes", "checkpoint_evaluations")
"""Settings that change no number: a training may be gone on with under others."""

NOT_IN_BF16 = ("deberta", "xmod")
"""Families whose forward overflows under autocast in bf16: they mask with the least float32."""

UNUSED_PARAMETERS = ("big_bird", "canine", "esm", "luke", "xlnet")
"""Families that have parameters which their own classification never reads, and DDP would wait for gradients of."""

type_of_precision = {"fp32": None, "bf16": torch.bfloat16}


class Training(Settings):
    """How a model is trained: AdamW, linear warm-up and decay, length-bucketed batches."""

    epochs: int = Field(3, ge=1)
    batch_size: int = Field(32, ge=1)
    """Rows in one optimiser step, over all workers of the slot together."""
    learning_rate: float = Field(5e-5, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: float = Field(0.01, ge=0)
    """Not applied to biases and normalisation weights."""
    clip_norm: float = Field(1.0, gt=0)
    evaluations_per_epoch: int = Field(1, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 autocast where the processor or GPU computes in it. The last evaluation is always fp32."""
    checkpoint_minutes: float = Field(5.0, ge=0)
    """Longest time between two checkpoints: what a dead worker costs at most. 0: none by the clock."""
    checkpoint_evaluations: int = Field(0, ge=0)
    """Evaluations between two checkpoints, besides those by the clock. 0: none."""

    def evaluations(self, rows: int) -> int:
        """How many evaluations a training on so many rows makes that nothing stops."""
        return self.epochs * len(_marks(math.ceil(rows / self.batch_size), self.evaluations_per_epoch))

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of the step (from 0) out of so many."""
        warm = max(1, round(self.warmup * steps)) if self.warmup else 0
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * (steps - step) / max(1, steps - warm)


def autocast_dtype(
    precision: Literal["auto", "fp32", "bf16"], device: torch.device, model: nn.Module
) -> torch.dtype | None:
    """The type that autocast computes in for this model on this device; None for plain float32."""
    if precision != "auto":
        return type_of_precision[precision]
    if _family(model) in NOT_IN_BF16:
        return None
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and "avx512" in torch.backends.cpu.get_cpu_capability().lower() and _cpu_has_bf16()
    return torch.bfloat16 if fast else None


def _family(model: nn.Module) -> str:
    return getattr(getattr(model, "config", None), "model_type", "")


def _cpu_has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True)
class Place:
    """How far a training is, after a step."""

    epoch: int = 0
    """Whole epochs before this one."""
    batch: int = 0
    """Batches of this epoch already done."""
    step: int = 0


@dataclass
class Sums:
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
            "rows": self.rows, "norm": torch.as_tensor(self.norm).cpu(),
            "terms": {name: value.cpu() for name, value in self.terms.items()},
            "seconds": time.perf_counter() - self.started,
        }  # fmt: skip

    @classmethod
    def restored(cls, state: Mapping[str, Any], device: torch.device) -> "Sums":
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
        ranks = worker.gathered({"rows": self.rows} | {name: float(value) for name, value in self.terms.items()})
        total = {name: sum(rank[name] for rank in ranks) for name in ranks[0]}
        rows = total.pop("rows")
        loss = sum(total.values())
        shares = {f"share_{name}": value / loss if loss else 0.0 for name, value in total.items()}
        return {"train_loss": loss / rows, **shares, "examples_per_s": rows / seconds, "train_seconds": seconds}


def fit(
    model: nn.Module,
    rows: Rows,
    training: Training,
    loss_of: LossOf,
    evaluate: Callable[[nn.Module, bool], dict[str, float]],
    worker: Worker,
    seed: int,
    checkpoint: Path | None = None,
) -> Generator[Report, None, list[Report]]:
    """Train the model in place; yield the metrics of each evaluation, return them all when it came to its end.

    `evaluate(model, last)` measures; `last` is true for the evaluation that ends the training. With `checkpoint`, a
    training that was cut off goes on from that file when it is called again; it yields its earlier evaluations first,
    for whoever asks now may not have heard of all of them. Ends early, and returns none, when the worker is told to.
    Raises JobError when the loss is not finite.
    """
    model.to(worker.device).train()
    step = Step(model, training, loss_of, worker)
    torch.manual_seed(seed * 1000 + worker.rank)
    keeping = Keeping(checkpoint, training, model, step.optimizer, worker)
    start, sums = keeping.restored()
    yield from keeping.reports
    steps_per_epoch = math.ceil(len(rows) / training.batch_size)
    steps, marks = training.epochs * steps_per_epoch, _marks(steps_per_epoch, training.evaluations_per_epoch)
    for at, indices in _batches(rows, training, seed, start):
        rate = training.rate(at.step - 1, steps)
        step(rows, indices, rate, sums)
        evaluated = at.batch in marks
        if at.step % FINITE_CHECK_STEPS == 0 or evaluated:
            sums.check_finite(f"step {at.step}")
        ask = worker.asked(save=keeping.due())
        if ask is Ask.END:
            return []
        if evaluated:
            report: Report = {"epoch": at.epoch + at.batch / steps_per_epoch, "step": at.step, "learning_rate": rate}
            report |= sums.metrics(worker)
            report |= _evaluated(model, evaluate, at.step == steps)
            keeping.reports.append(report)
            yield report
            sums = Sums()
        if at.step < steps and (ask or (evaluated and keeping.due_after_evaluation())):
            keeping.save(at, sums)
        if ask is Ask.SUSPEND and at.step < steps:
            return []
    model.eval()
    return keeping.reports


class Keeping:
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

    def save(self, at: Place, sums: Sums) -> None:
        """Write a checkpoint; the one before it stays until this one is whole. A collective call."""
        ranks = self.worker.gathered({"random": _random_states(self.worker), "sums": sums.state()})
        if self.path is not None and self.worker.rank == 0:
            models = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            write_checkpoint(self.path, {**models, "ranks": ranks, "reports": self.reports, "at": asdict(at)})
        self._saved = time.monotonic()

    def restored(self) -> tuple[Place, Sums]:
        """Where to start: where the checkpoint was written, or at the beginning. One that is damaged is not used."""
        if self.path is None or not self.worker.agreed(fetched(self.path).exists()):
            return Place(), Sums()
        try:
            state = read_checkpoint(self.path)
        except (StorageError, OSError) as error:
            self.reports = [{NOTE: f"{error} The training began again from its start."}]
            return Place(), Sums()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.reports = state["reports"]
        return Place(**state["at"]), self._own_part(state["ranks"])

    def _own_part(self, ranks: list[dict[str, Any]]) -> Sums:
        """What this rank goes on with. With another number of ranks, or from a CPU on a GPU, no dropout is as it was:
        each draws its own."""
        worker = self.worker
        if len(ranks) != worker.world:
            return Sums()
        random = ranks[worker.rank]["random"]
        torch.set_rng_state(random["cpu"])
        if worker.device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], worker.device)
        return Sums.restored(ranks[worker.rank]["sums"], worker.device)


class Step:
    """One step of the optimiser on a global batch, of which each worker does its part."""

    def __init__(self, model: nn.Module, training: Training, loss_of: LossOf, worker: Worker) -> None:
        self.model, self.training, self.loss_of, self.worker = model, training, loss_of, worker
        unused = _family(model) in UNUSED_PARAMETERS
        self.wrapped = DistributedDataParallel(model, find_unused_parameters=unused) if worker.world > 1 else model
        self.parameters = list(model.parameters())  # to find them takes longer than to clip a small model's gradients
        self.optimizer = adamw(model, training)
        self.dtype = autocast_dtype(training.precision, worker.device, model)

    def __call__(self, rows: Rows, indices: np.ndarray, rate: float, sums: Sums) -> None:
        """Lower the loss on these rows; add what came of it to `sums`."""
        batch, weight = self._own_part(rows, indices)
        with torch.autocast(self.worker.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            logits = self.wrapped(**batch.inputs).logits
        loss = self.loss_of(logits, batch)
        (loss.total_B.sum() * weight).backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.training.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        sums.add(loss, len(batch.labels_B) if weight else 0, norm.detach())

    def _own_part(self, rows: Rows, indices: np.ndarray) -> tuple[Batch, float]:
        """This rank's rows of a global batch, and the weight of one row in the loss that DDP averages over ranks.

        A rank that gets no row of a short batch still takes part in the step, with weight 0.
        """
        own = indices[self.worker.rank :: self.worker.world]
        weight = self.worker.world / len(indices) if len(own) else 0.0
        batch = rows.batch(own if len(own) else indices[:1], self.worker.multiple)
        return batch.to(self.worker.device), weight


def adamw(model: nn.Module, training: Training) -> torch.optim.AdamW:
    """Fused AdamW; biases and normalisation weights, the parameters of one dimension, do not decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)


def _batches(rows: Rows, training: Training, seed: int, start: Place) -> Iterator[tuple[Place, np.ndarray]]:
    """The global batches still to do, each with the place that is reached after it."""
    step = start.step
    for epoch in range(start.epoch, training.epochs):
        batches = epoch_batches(rows.lengths, training.batch_size, seed=seed, epoch=epoch)
        done = start.batch if epoch == start.epoch else 0
        for batch, indices in enumerate(batches[done:], start=done + 1):
            step += 1
            yield Place(epoch, batch, step), indices


def _marks(steps_per_epoch: int, evaluations: int) -> set[int]:
    """After how many batches of an epoch the model is evaluated; always after the last."""
    return {math.ceil(steps_per_epoch * part / evaluations) for part in range(1, evaluations + 1)}


def _evaluated(model: nn.Module, evaluate: Callable[[nn.Module, bool], dict[str, float]], last: bool) -> Report:
    started = time.perf_counter()
    model.eval()
    metrics = evaluate(model, last)
    model.train()
    return {**metrics, "eval_seconds": time.perf_counter() - started}


def _random_states(worker: Worker) -> dict[str, Tensor]:
    """What this rank draws its dropout from."""
    cuda = {"cuda": torch.cuda.get_rng_state(worker.device)} if worker.device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **cuda}
