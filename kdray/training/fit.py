"""fit(): the one loop that trains teachers and students alike.

It knows models, rows and losses. `losses` says what a loss compares, the caller says what an evaluation measures, the
worker says when to stop early, and `checkpoint` says how a checkpoint is stored.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from kdray.data.batches import epoch_batches
from kdray.data.rows import Rows
from kdray.slots.job import Instruction, Report, Worker
from kdray.training.checkpoint import CheckpointKeeper, Position, RunningSums
from kdray.training.settings import Training, evaluation_marks
from kdray.training.step import LossOf, Step

FINITE_CHECK_STEPS = 50
"""Steps between two checks that the gradients are finite; on a GPU each check waits for the device."""

Evaluate: TypeAlias = Callable[[nn.Module, bool], dict[str, float]]
"""From the model, and whether this evaluation ends the training, to metrics by name."""


@dataclass(frozen=True)
class TrainingPlan:
    """What a training does, whichever model it trains."""

    rows: Rows
    """The training rows."""
    training: Training
    loss_of: LossOf
    evaluate: Evaluate
    seed: int
    checkpoint: Path | None = None
    """The file that a training which was cut off continues from. None: no checkpoints."""


def fit(model: nn.Module, plan: TrainingPlan, worker: Worker) -> Generator[Report, None, list[Report]]:
    """Train the model in place; yield the metrics of each evaluation, and return all of them at the end.

    A training that was cut off continues from its checkpoint when `fit` is called again. It yields its earlier
    evaluations first, because the caller of now may not have received all of them. If the worker is told to stop, the
    training ends early and returns an empty list. Raises JobError when the loss is not finite.
    """
    training = plan.training
    model.to(worker.device).train()
    step = Step(model, training, plan.loss_of, worker)
    torch.manual_seed(plan.seed * 1000 + worker.rank)  # each rank draws its own dropout
    keeper = CheckpointKeeper(plan.checkpoint, training, model, step.optimizer, worker)
    start, sums = keeper.restore()
    yield from keeper.reports
    steps_per_epoch = math.ceil(len(plan.rows) / training.batch_size)
    steps, marks = training.epochs * steps_per_epoch, evaluation_marks(steps_per_epoch, training.evaluations_per_epoch)
    for at, indices in _batches(plan, start):
        rate = training.rate(at.step - 1, steps)
        step(plan.rows, indices, rate, sums)
        evaluates = at.batch in marks
        if at.step % FINITE_CHECK_STEPS == 0 or evaluates:
            sums.check_finite(f"step {at.step}")
        instruction = worker.next_instruction(save=keeper.due())
        if instruction is Instruction.END:
            return []
        if evaluates:
            report: Report = {"epoch": at.epoch + at.batch / steps_per_epoch, "step": at.step, "learning_rate": rate}
            report |= sums.metrics(worker)
            report |= _evaluate(model, plan.evaluate, at.step == steps)
            keeper.reports.append(report)
            yield report
            sums = RunningSums()
        if at.step < steps and (instruction or (evaluates and keeper.due_after_evaluation())):
            keeper.save(at, sums)
        if instruction is Instruction.SUSPEND and at.step < steps:
            return []
    model.eval()
    return keeper.reports


def _batches(plan: TrainingPlan, start: Position) -> Iterator[tuple[Position, np.ndarray]]:
    """The global batches that are still to do, each with the position that is reached after it."""
    step = start.step
    for epoch in range(start.epoch, plan.training.epochs):
        batches = epoch_batches(plan.rows.lengths, plan.training.batch_size, seed=plan.seed, epoch=epoch)
        done = start.batch if epoch == start.epoch else 0
        for batch, indices in enumerate(batches[done:], start=done + 1):
            step += 1
            yield Position(epoch, batch, step), indices


def _evaluate(model: nn.Module, evaluate: Evaluate, last: bool) -> Report:
    started = time.perf_counter()
    model.eval()
    metrics = evaluate(model, last)
    model.train()
    return {**metrics, "eval_seconds": time.perf_counter() - started}
