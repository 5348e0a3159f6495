"""Recipe: all that a trial can be told; Trial: the job that trains one student.

This module knows no search and no tracking: a trial gets its recipe and the place of its inputs, and yields the metrics
of each evaluation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from kdray.data.rows import Batch, Rows
from kdray.data.tokens import TokenSet
from kdray.data.transfer_set import TransferSet
from kdray.evaluation.outputs import compute_logits
from kdray.evaluation.quality import student_quality
from kdray.losses.distillation import Distillation, Loss
from kdray.models.pretrained import Pretrained, save_model
from kdray.models.transformer import TransformerStudent
from kdray.settings import Settings
from kdray.slots.job import Report, Worker
from kdray.storage.files import read_json, upload_folder, write_json
from kdray.storage.mirror import fetch, remove
from kdray.tasks.task import Task
from kdray.training.fit import TrainingPlan, fit
from kdray.training.precision import autocast_dtype
from kdray.training.settings import Training

EVALUATION_BATCH_SIZE = 128
"""Rows in one forward pass when a finished student is evaluated."""


class Recipe(Settings):
    """All that a trial can be told; the `space` of a sweep searches over any of it, by dotted name."""

    student: TransformerStudent = TransformerStudent()
    distillation: Distillation = Distillation()
    training: Training = Training()


@dataclass(frozen=True)
class TrialInputs:
    """What all trials with the same source read."""

    task: Task
    source: Pretrained
    """The model that students are built from: the teacher, or a smaller checkpoint."""
    tokens: TokenSet
    """The rows in the ids of the source's tokenizer."""
    transfer: TransferSet

    def rows(self, split: str, worker: Worker) -> Rows:
        """The rows with the teacher's logits; they stay open in the worker."""
        key = ("rows", self.tokens.folder, self.transfer.folder, split)
        return worker.cached(key, lambda: self.transfer.rows(self.tokens, split))


@dataclass(frozen=True)
class Trial:
    """The job that trains one student and measures it; when it has ended, the student's weights are in `target`.

    While it is trained, a checkpoint lies beside `target`. Afterwards a file with all its reports lies there, so that a
    trial whose end was not received by the driver is not trained again.
    """

    recipe: Recipe
    inputs: TrialInputs
    seed: int
    target: Path

    def __call__(self, worker: Worker) -> Iterator[Report]:
        ended = fetch(reports_file(self.target))
        if worker.broadcast(ended.exists()):
            yield from read_reports(self.target)
            return
        source = worker.cached(("source", self.inputs.source.key), self.inputs.source.model)
        model = self.recipe.student.build(source, self.seed)
        checkpoint = self.target.with_name("checkpoint.pt")
        reports = yield from fit(model, self._plan(model, checkpoint, worker), worker)
        if worker.rank == 0 and reports:
            tokenizer = worker.cached(("tokenizer", self.inputs.source.key), self.inputs.source.tokenizer)
            with upload_folder(self.target) as folder:
                save_model(model.cpu(), tokenizer, folder)
            write_json(ended, reports)
            remove(checkpoint)

    def _plan(self, model: nn.Module, checkpoint: Path, worker: Worker) -> TrainingPlan:
        training = self.recipe.training
        train, validation = self.inputs.rows("train", worker), self.inputs.rows("validation", worker)
        dtype = autocast_dtype(training.precision, worker.device, model)

        def loss_of(logits: Tensor, batch: Batch) -> Loss:
            return self.recipe.distillation.loss(logits, batch.teacher_logits_BxC, batch.labels_B)

        def evaluate(model: nn.Module, last: bool) -> dict[str, float]:
            # The last evaluation is what trials are compared by, so it is computed in float32.
            logits = compute_logits(model, validation, 4 * training.batch_size, worker, None if last else dtype)
            return student_quality(self.inputs.task, logits, validation)

        return TrainingPlan(train, training, loss_of, evaluate, self.seed, checkpoint)


def reports_file(student: Path) -> Path:
    """The file with all reports of a student; it is there once the student's training has ended."""
    return student.with_name("ended.json")


def read_reports(student: Path) -> tuple[Report, ...]:
    """All reports of a student whose training has ended."""
    return tuple(read_json(fetch(reports_file(student))))


@dataclass(frozen=True)
class EvaluateStudent:
    """The job that measures a finished student, from its folder, in fp32, on one split."""

    inputs: TrialInputs
    student: Pretrained
    split: str

    def __call__(self, worker: Worker) -> Iterator[Report]:
        rows = self.inputs.rows(self.split, worker)
        model = self.student.model().to(worker.device)
        logits = compute_logits(model, rows, EVALUATION_BATCH_SIZE, worker, None)
        yield student_quality(self.inputs.task, logits, rows)
