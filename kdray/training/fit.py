"""fit(): the one loop that trains teachers and students alike.

It knows models, rows and losses. What a loss compares stands in `losses`, what an evaluation measures is given to it,
who stops it early is asked through the worker, and how a checkpoint lies on disk is `checkpoint`'s business.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kdray.data.batches import epoch_batches
from kdray.data.rows import Rows
from kdray.slots.job import Ask, Report, Worker
from kdray.training.checkpoint import Keeping, Place, Sums
from kdray.training.settings import Training, _marks
from kdray.training.step import LossOf, Step

FINITE_CHECK_STEPS = 50  # on a GPU each check waits for the device


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


def _batches(rows: Rows, training: Training, seed: int, start: Place) -> Iterator[tuple[Place, np.ndarray]]:
    """The global batches still to do, each with the place that is reached after it."""
    step = start.step
    for epoch in range(start.epoch, training.epochs):
        batches = epoch_batches(rows.lengths, training.batch_size, seed=seed, epoch=epoch)
        done = start.batch if epoch == start.epoch else 0
        for batch, indices in enumerate(batches[done:], start=done + 1):
            step += 1
            yield Place(epoch, batch, step), indices


def _evaluated(model: nn.Module, evaluate: Callable[[nn.Module, bool], dict[str, float]], last: bool) -> Report:
    started = time.perf_counter()
    model.eval()
    metrics = evaluate(model, last)
    model.train()
    return {**metrics, "eval_seconds": time.perf_counter() - started}
