"""fit_together(): the training loop of several students of one architecture that are trained as one batch of models.

Each student has what it has in `fit`: its plan, its reports at its evaluations, its checkpoint, from which `fit` alone
may continue, and its instructions. A student that ends, is stopped or fails leaves the batch, and the others continue
with the numbers that they would have had without it. `fused_step` makes the steps.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from kdray.data.rows import Batch
from kdray.slots.job import Instruction, Report, Worker
from kdray.training.checkpoint import CheckpointManager, RunningSums
from kdray.training.compact import compact_table, whole_table
from kdray.training.fit import FINITE_CHECK_STEPS, TrainingPlan, evaluation_report, remaining_batches
from kdray.training.fused_model import problem_of, unused_weights
from kdray.training.fused_step import Member, Stack
from kdray.training.settings import evaluation_marks
from kdray.training.step import Learner, adamw


@dataclass(frozen=True, eq=False)
class FusedStudent:
    """One student of a batch. All have the same architecture, rows, epoch, seed, batch size and precision."""

    model: nn.Module
    plan: TrainingPlan
    instruction: Callable[[], Instruction]
    """The instruction for this student, read without waiting."""


@dataclass(frozen=True)
class End:
    """A student has left the batch."""

    reports: tuple[Report, ...] = ()
    """All its reports if its training is complete; empty if it was stopped or has failed."""
    error: Exception | None = None
    """Why its training failed."""


def problem_of_batch(students: Sequence[FusedStudent], worker: Worker) -> str:
    """Why these students cannot be trained as one batch of models; empty: they can."""
    if worker.world > 1:
        return "several workers train each student"
    if any(student.plan.inside or student.plan.quantising or student.plan.rows.top_k for student in students):
        return "only students in float32 or bf16, with terms on few outputs, can be computed so"
    return problem_of(students[0].model.to(worker.device), _example(students[0].plan, worker))


def fit_together(students: Sequence[FusedStudent], worker: Worker) -> Iterator[tuple[int, Report | End]]:
    """Train the models in place. Yield the reports of each student, as `fit` does, and its end, with its number.

    An error of one student is its end; an error of a step, which all of them make, is raised.
    """
    trainings = [_Training(student, worker) for student in students]
    try:
        yield from _steps(trainings, worker)
    finally:
        for training in trainings:
            training.close()


def _steps(trainings: Sequence["_Training"], worker: Worker) -> Iterator[tuple[int, Report | End]]:
    for number, training in enumerate(trainings):
        yield from ((number, report) for report in training.checkpoints.reports)
    unused = unused_weights(trainings[0].member.model, _example(trainings[0].plan, worker))
    stack: Stack | None = None
    stacked: list[int] = []
    running = set(range(len(trainings)))
    while running:
        # Students whose checkpoints are further wait until the others are there.
        step = min(trainings[number].at.step for number in running)
        together = [number for number in sorted(running) if trainings[number].at.step == step]
        if stack is None or together != stacked:
            for place, number in enumerate(stacked):
                if stack is not None and number in running:
                    stack.write_back(place, trainings[number].sums)
            if not set(together) & set(stacked):
                trainings[together[0]].restore_random_state()
            stack, stacked = Stack([trainings[number].member for number in together], worker, unused), together
        now = [trainings[number] for number in together]
        rates, progress = [each.rate for each in now], [each.progress for each in now]
        stack.step(now[0].rows, now[0].indices, rates, progress)
        worker.progress += 1
        for place, number in enumerate(together):
            yield from ((number, report) for report in trainings[number].after_step(partial(stack.write_back, place)))
        for number in sorted(running):
            if number not in together:
                trainings[number].stop_if_instructed()
            if (end := trainings[number].end) is not None:
                running.remove(number)
                trainings[number].close()
                yield number, end


class _Training:
    """The training of one student, between the steps that it makes with the others."""

    def __init__(self, student: FusedStudent, worker: Worker) -> None:
        plan, device = student.plan, worker.device
        model, objective = student.model.to(device).train(), plan.objective.to(device)
        self._blocks = ExitStack()
        self._table = self._blocks.enter_context(compact_table(model, plan.rows.token_ids, plan.training.weight_decay))
        self.plan, self._worker, self._instruction = plan, worker, student.instruction
        self.member = Member(model, objective, adamw(Learner(model, objective), plan.training), plan.training)
        torch.manual_seed(plan.seed * 1000 + worker.rank)  # as in `fit`: the students draw the same dropout
        self.checkpoints = CheckpointManager(
            path=plan.checkpoint,
            training=plan.training,
            model=model,
            optimizer=self.member.optimizer,
            worker=worker,
            objective=plan.objective,
        )
        start, self.sums = self.checkpoints.restore(partial(whole_table, self._table, self.member.optimizer))
        self._random_state = _random_state(device)
        self._steps_per_epoch = math.ceil((plan.epoch_rows or len(plan.rows)) / plan.training.batch_size)
        self._steps = plan.training.epochs * self._steps_per_epoch
        self._marks = evaluation_marks(self._steps_per_epoch, plan.training.evaluations_per_epoch)
        self._batches = remaining_batches(plan, start.step, self._steps_per_epoch)
        for number in range(start.step):
            self._decay(plan.training.learning_rate_at(number, self._steps))
        self.end: End | None = None
        """How it left the others; None: it has not."""
        self._next_batch()

    @property
    def rate(self) -> float:
        """The learning rate of its next step."""
        return self.plan.training.learning_rate_at(self.at.step - 1, self._steps)

    @property
    def progress(self) -> float:
        """The share of the training that is behind at its next step."""
        return (self.at.step - 1) / max(1, self._steps - 1)

    def restore_random_state(self) -> None:
        """Let the next step draw the dropout that this student draws alone."""
        cpu, cuda = self._random_state
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, self._worker.device)

    def after_step(self, write_back: Callable[[RunningSums], None]) -> Iterator[Report]:
        """What `fit` does after a step: check, evaluate, save, and go on or end. An error is its end."""
        self._decay(self.rate)
        try:
            yield from self._after_step(write_back)
        except Exception as error:
            self.end = End(error=error)

    def close(self) -> None:
        """Let the model be as it is outside of a training."""
        self._blocks.close()

    def stop_if_instructed(self) -> None:
        """End, if it must, before its next step. Its checkpoint is that of its last step."""
        if self._instruction() >= Instruction.SUSPEND:
            self.end = End()

    def _after_step(self, write_back: Callable[[RunningSums], None]) -> Iterator[Report]:
        at, plan, checkpoints = self.at, self.plan, self.checkpoints
        must_evaluate = at.batch in self._marks
        instruction = max(self._instruction(), Instruction.SAVE if checkpoints.is_due() else Instruction.NOTHING)
        must_check = must_evaluate or at.step % FINITE_CHECK_STEPS == 0
        if must_check or instruction is not Instruction.NOTHING:
            write_back(self.sums)
        if must_check:
            self.sums.check_finite(f"step {at.step}")
        if instruction is Instruction.END:
            self.end = End()
            return
        if must_evaluate:
            epoch = at.epoch + at.batch / self._steps_per_epoch
            report: Report = {"epoch": epoch, "step": at.step, "learning_rate": self.rate}
            report |= self.sums.metrics(self._worker)
            with whole_table(self._table):
                report |= evaluation_report(self.member.model, plan.evaluate, at.step == self._steps)
            checkpoints.reports.append(report)
            yield report
            self.sums = RunningSums()
        must_save = instruction is not Instruction.NOTHING or (must_evaluate and checkpoints.is_due_after_evaluation())
        if at.step < self._steps and must_save:
            with whole_table(self._table, self.member.optimizer):
                checkpoints.save(at, self.sums)
        if at.step == self._steps:
            self.member.model.eval()
            self.end = End(tuple(checkpoints.reports))
        elif instruction is Instruction.SUSPEND:
            self.end = End()
        else:
            self._next_batch()

    def _decay(self, rate: float) -> None:
        if self._table is not None:
            self._table.decay(rate)

    def _next_batch(self) -> None:
        self.at, self.rows, self.indices = next(self._batches)


def _example(plan: TrainingPlan, worker: Worker) -> Batch:
    return plan.rows.batch(np.arange(min(2, len(plan.rows)))).to(worker.device)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None
