"""fit(): the training loop, the same for teachers and students.

`losses` defines what a loss compares, the caller defines what an evaluation measures, the worker receives the
instruction to stop early, and `checkpoint` stores checkpoints.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from kdray.data.batches import epoch_batches
from kdray.data.rows import Rows
from kdray.errors import SpecError
from kdray.losses.objective import Objective
from kdray.slots.job import Instruction, Report, Worker
from kdray.training.checkpoint import CheckpointManager, Position, RunningSums
from kdray.training.compact import CompactTable, compact_table, whole_table
from kdray.training.inside import Inside
from kdray.training.quantising import Quantising
from kdray.training.settings import Training, evaluation_marks
from kdray.training.step import Learner, Step

FINITE_CHECK_STEPS = 50
"""Steps between two checks that the gradients are finite. On a GPU each check waits for the device, so not every step
has one."""

Evaluate: TypeAlias = Callable[[nn.Module, bool], dict[str, float]]
"""A function of the model, and of whether this is the last evaluation of the training, that gives metrics by name."""


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that defines a training, except the model and the worker."""

    rows: Rows
    """The training rows."""
    training: Training
    objective: Objective
    """What is lowered. Its projections are trained with the model, and are no part of it."""
    evaluate: Evaluate
    seed: int
    inside: Inside | None = None
    """Gives the states that inner terms compare; None: the objective has no inner terms."""
    epoch_rows: int | None = None
    """The number of rows that make an epoch; None: the training rows. If it is larger, an epoch goes through the rows
    several times, so that a model which learns from fewer rows makes as many steps."""
    checkpoint: Path | None = None
    """The checkpoint file, from which a training that was cut off continues. None: no checkpoints."""
    quantising: Quantising | None = None
    """Switches the model to int8, if `training.quantised` says so; None: the model always computes in float32."""

    def __post_init__(self) -> None:
        if self.training.quantised != "no" and self.quantising is None:
            raise SpecError(
                f"training.quantised: got {self.training.quantised!r}, but only students are trained with int8 in "
                "mind. Leave it out of teacher.training."
            )

    def form_at(self, progress: float) -> AbstractContextManager[None]:
        """A block in which the model computes in the form that it has when this share of the training is behind."""
        if self.quantising is None:
            return nullcontext()
        return self.quantising.step(self.training.is_quantised_at(progress))


def fit(model: nn.Module, plan: TrainingPlan, worker: Worker) -> Generator[Report, None, list[Report]]:
    """Train the model in place, yield the metrics of each evaluation, and return all of them at the end.

    A training that was cut off continues from its checkpoint when `fit` is called again. It yields its earlier
    evaluations first, because the caller may not have received all of them. If the worker receives the instruction to
    stop, the training ends early and returns an empty list. Raises JobError if the loss is not finite.
    """
    model.to(worker.device).train()
    # What is rounded to int8 depends on the range of the whole table.
    ids = plan.rows.token_ids if plan.quantising is None else None
    with compact_table(model, ids, plan.training.weight_decay) as table:
        return (yield from _train(model, plan, worker, table))


def _train(
    model: nn.Module, plan: TrainingPlan, worker: Worker, table: CompactTable | None
) -> Generator[Report, None, list[Report]]:
    training = plan.training
    learner = Learner(model, plan.objective.to(worker.device), plan.inside)
    step = Step(learner, training, worker)
    torch.manual_seed(plan.seed * 1000 + worker.rank)  # each rank draws its own dropout
    checkpoints = CheckpointManager(
        path=plan.checkpoint,
        training=training,
        model=model,
        optimizer=step.optimizer,
        worker=worker,
        objective=plan.objective,
    )
    steps_per_epoch = math.ceil((plan.epoch_rows or len(plan.rows)) / training.batch_size)
    steps = training.epochs * steps_per_epoch
    start, sums = checkpoints.restore(partial(whole_table, table, step.optimizer))
    if table is not None:
        for number in range(start.step):
            table.decay(training.learning_rate_at(number, steps))
    yield from checkpoints.reports
    marks = evaluation_marks(steps_per_epoch, training.evaluations_per_epoch)
    for at, rows, indices in remaining_batches(plan, start.step, steps_per_epoch):
        rate = training.learning_rate_at(at.step - 1, steps)
        # From the number of the step, so a continued training and all ranks have the same one.
        progress = (at.step - 1) / max(1, steps - 1)
        with plan.form_at(progress):
            step(rows, indices, rate, progress, sums)
        if table is not None:
            table.decay(rate)
        must_evaluate = at.batch in marks
        if at.step % FINITE_CHECK_STEPS == 0 or must_evaluate:
            sums.check_finite(f"step {at.step}")
        instruction = worker.next_instruction(save=checkpoints.is_due())
        if instruction is Instruction.END:
            return []
        if must_evaluate:
            report: Report = {"epoch": at.epoch + at.batch / steps_per_epoch, "step": at.step, "learning_rate": rate}
            report |= sums.metrics(worker)
            with whole_table(table):
                report |= evaluation_report(model, plan.evaluate, at.step == steps)
            checkpoints.reports.append(report)
            yield report
            sums = RunningSums()
        # After the report: a continued training may report an evaluation twice, but it never omits one. After the last
        # step no checkpoint is needed, because the training is complete.
        must_save = instruction is not Instruction.NOTHING or (must_evaluate and checkpoints.is_due_after_evaluation())
        if at.step < steps and must_save:
            with whole_table(table, step.optimizer):
                checkpoints.save(at, sums)
        if instruction is Instruction.SUSPEND and at.step < steps:
            return []
    model.eval()
    return checkpoints.reports


def remaining_batches(
    plan: TrainingPlan, start: int, steps_per_epoch: int
) -> Iterator[tuple[Position, Rows, np.ndarray]]:
    """The global batches after `start` steps, each with the position that the training has after it.

    A batch is the rows as they are in this pass through them, and the numbers of those that belong to it.

    The batches are those of one pass through the rows after the other. A pass is an epoch, unless an epoch has more
    rows than there are.
    """
    steps_per_pass = math.ceil(len(plan.rows) / plan.training.batch_size)
    batches: list[np.ndarray] = []
    rows = plan.rows
    for step in range(start, plan.training.epochs * steps_per_epoch):
        number, batch = divmod(step, steps_per_pass)
        if not batches or batch == 0:
            # The order of a pass depends on seed and number only, so a continued training skips what it has done.
            batches = epoch_batches(plan.rows.lengths, plan.training.batch_size, seed=plan.seed, epoch=number)
            rows = plan.rows.at_pass(number)
        epoch, in_epoch = divmod(step, steps_per_epoch)
        yield Position(epoch, in_epoch + 1, step + 1), rows, batches[batch]


def evaluation_report(model: nn.Module, evaluate: Evaluate, last: bool) -> Report:
    """The metrics of the model in evaluation mode, and the time they took, in seconds."""
    started = time.perf_counter()
    model.eval()
    metrics = evaluate(model, last)
    model.train()
    return {**metrics, "eval_seconds": time.perf_counter() - started}
