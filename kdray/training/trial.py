"""Trial: one concrete student run, as a job for a slot; and Recipe: all that a trial can be told.

Knows no search and no tracking: it is given a recipe, where the teacher, its transfer set and the rows lie, and yields
the metrics of each evaluation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from kdray.data.rows import Rows
from kdray.data.tokens import TokenSet
from kdray.data.transfer_set import TransferSet
from kdray.evaluation.outputs import predictions
from kdray.evaluation.quality import quality
from kdray.losses.distillation import Distillation
from kdray.models.pretrained import Pretrained, save
from kdray.models.transformer import TransformerStudent
from kdray.settings import Settings
from kdray.slots.job import Report, Worker
from kdray.storage.files import handed_in_folder, read_json, write_json
from kdray.storage.mirror import fetched, remove
from kdray.tasks.task import Task
from kdray.training.fit import fit
from kdray.training.precision import autocast_dtype
from kdray.training.settings import Training


class Recipe(Settings):
    """All that a trial can be told; a sweep's `space` searches over any of it, by dotted name."""

    student: TransformerStudent = TransformerStudent()
    distillation: Distillation = Distillation()
    training: Training = Training()


@dataclass(frozen=True)
class Lesson:
    """What all trials with the same source learn from."""

    task: Task
    source: Pretrained
    """What the student's layers are taken from: the teacher, or a smaller checkpoint."""
    tokens: TokenSet
    """Written with the source's tokenizer."""
    transfer: TransferSet

    def rows(self, split: str, worker: Worker) -> Rows:
        """The rows with the teacher's logits; they stay open in the worker."""
        key = ("rows", self.tokens.folder, self.transfer.folder, split)
        return worker.kept(key, lambda: self.transfer.rows(self.tokens, split))


@dataclass(frozen=True)
class Trial:
    """Train one student and measure it; its weights are in `target` when the job has ended well.

    Beside it lie the checkpoint, while it is trained, and afterwards all that it reported: a trial that ended without
    anybody hearing of it is not trained again.
    """

    recipe: Recipe
    lesson: Lesson
    seed: int
    target: Path

    def __call__(self, worker: Worker) -> Iterator[Report]:
        ended = fetched(reports_file(self.target))
        if worker.agreed(ended.exists()):
            yield from reports_of(self.target)
            return
        training = self.recipe.training
        source = worker.kept(("source", self.lesson.source.key), self.lesson.source.model)
        model = self.recipe.student.build(source, self.seed)
        train, validation = self.lesson.rows("train", worker), self.lesson.rows("validation", worker)
        dtype = autocast_dtype(training.precision, worker.device, model)
        checkpoint = self.target.with_name("checkpoint.pt")

        def evaluate(model: nn.Module, last: bool) -> dict[str, float]:
            logits = predictions(model, validation, 4 * training.batch_size, worker, None if last else dtype)
            return quality(self.lesson.task, logits, validation)

        reports = yield from fit(
            model, train, training,
            lambda logits, batch: self.recipe.distillation.loss(logits, batch.teacher_logits_BxC, batch.labels_B),
            evaluate, worker, self.seed, checkpoint,
        )  # fmt: skip
        if worker.rank == 0 and reports:
            tokenizer = worker.kept(("tokenizer", self.lesson.source.key), self.lesson.source.tokenizer)
            with handed_in_folder(self.target) as folder:
                save(model.cpu(), tokenizer, folder)
            write_json(ended, reports)
            remove(checkpoint)


def reports_file(student: Path) -> Path:
    """Where all that a student reported lies, once its training has ended."""
    return student.with_name("ended.json")


def reports_of(student: Path) -> tuple[Report, ...]:
    """All that a student reported whose training has ended."""
    return tuple(read_json(fetched(reports_file(student))))


@dataclass(frozen=True)
class Examine:
    """The job that measures a finished student, from its folder, in fp32, on one split."""

    lesson: Lesson
    student: Pretrained
    split: str

    def __call__(self, worker: Worker) -> Iterator[Report]:
        rows = self.lesson.rows(self.split, worker)
        logits = predictions(self.student.model().to(worker.device), rows, 128, worker, None)
        yield quality(self.lesson.task, logits, rows)
