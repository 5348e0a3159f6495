"""FusedTrials: the job that trains the students of several trials as one batch of models.

Where PyTorch cannot do that, it trains them one after the other. `trial` says which trials may be fused.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from transformers import PreTrainedModel

from kdray.losses.distribution import Distribution
from kdray.slots.job import Instruction, JobEnd, Report, Worker
from kdray.training.fit import TrainingPlan
from kdray.training.fused import End, FusedStudent, fit_together, problem_of_batch

logger = logging.getLogger(__name__)

Instructions: TypeAlias = Sequence[Callable[[], Instruction]]
"""The function of each trial that reads its instruction."""


class StudentTrial(Protocol):
    """A trial: a job that builds a student, trains it with a plan, and saves it."""

    def __call__(self, worker: Worker) -> Iterator[Report]:
        """Run the trial alone."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether its training is complete."""
        ...

    def build(self, worker: Worker) -> tuple[PreTrainedModel, Distribution]:
        """The student before its training, and the distribution of its outputs in the training."""
        ...

    def plan(self, model: PreTrainedModel, distribution: Distribution, worker: Worker) -> TrainingPlan:
        """Its training, without inner terms."""
        ...

    def save(
        self, model: PreTrainedModel, distribution: Distribution, reports: Sequence[Report], worker: Worker
    ) -> None:
        """Write the student after its training, with all reports."""
        ...


@dataclass(frozen=True)
class FusedTrials:
    """Trials with the same `fuse_key` as one job: see `kdray.slots.job.FusedJob`."""

    trials: tuple[StudentTrial, ...]

    def __call__(self, worker: Worker, instructions: Instructions) -> Iterator[tuple[int, Report | JobEnd]]:
        """Train the students."""
        left = dict(enumerate(self.trials))
        together = {number: trial for number, trial in left.items() if not trial.has_ended}
        if len(together) > 1:
            try:
                for number, report in self._train_together(together, worker, instructions):
                    if isinstance(report, JobEnd):
                        del left[number]
                    yield number, report
            except torch.OutOfMemoryError:
                logger.warning("%d students do not fit into the memory together; they are trained alone.", len(left))
                torch.cuda.empty_cache()
        for number, trial in left.items():
            yield from _train_alone(number, trial, worker, instructions)

    def _train_together(
        self, trials: dict[int, StudentTrial], worker: Worker, instructions: Instructions
    ) -> Iterator[tuple[int, Report | JobEnd]]:
        """The reports and ends of these trials, or nothing if they cannot be one batch of models."""
        built = {number: trial.build(worker) for number, trial in trials.items()}
        plans = {number: trial.plan(*built[number], worker) for number, trial in trials.items()}
        students = [FusedStudent(built[number][0], plans[number], instructions[number]) for number in trials]
        if problem := problem_of_batch(students, worker):
            logger.info("These students are trained one after the other: %s.", problem)
            return
        numbers = list(trials)
        for place, report in fit_together(students, worker):
            number = numbers[place]
            if isinstance(report, End):
                yield number, JobEnd(report.error or _save(trials[number], built[number], report, worker))
            else:
                yield number, report


def _save(
    trial: StudentTrial, built: tuple[PreTrainedModel, Distribution], end: End, worker: Worker
) -> Exception | None:
    """Write the student of a complete training; the error if that fails, which is of this trial alone."""
    try:
        if end.reports:
            trial.save(*built, end.reports, worker)
    except Exception as error:
        return error
    return None


def _train_alone(
    number: int, trial: StudentTrial, worker: Worker, instructions: Instructions
) -> Iterator[tuple[int, Report | JobEnd]]:
    of_worker, worker.instruction = worker.instruction, instructions[number]
    try:
        yield from ((number, report) for report in trial(worker))
        end = JobEnd()
    except Exception as error:  # it is that of this trial, not of the others
        end = JobEnd(error)
    finally:
        worker.instruction = of_worker
    yield number, end
