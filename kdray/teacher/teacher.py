"""Obtain a teacher: find or create it, fine-tune it on a slot if asked, and refuse one that should not be taught from.

Its outputs are written in `transfer`; how it is trained is `training.fit`, the same loop that trains students.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn

from kdray.data.rows import Batch
from kdray.data.splits import Splits
from kdray.data.tokens import TokenSet
from kdray.errors import TeacherError
from kdray.evaluation.outputs import compute_logits
from kdray.losses.distillation import Distillation, Loss
from kdray.models.fresh import FreshTransformer
from kdray.models.pretrained import Head, Pretrained, cached_folder, find_model, import_model, save_model
from kdray.settings import Names, Settings, identifying_values
from kdray.slots.job import Pool, Report, Worker, torch_threads
from kdray.storage.files import fingerprint, replace_folder
from kdray.storage.mirror import fetch, remove
from kdray.storage.paths import StoragePaths
from kdray.tasks.task import Task
from kdray.training.fit import TrainingPlan, fit
from kdray.training.precision import autocast_dtype
from kdray.training.settings import Training

EXCHANGED_GAIN = 0.1
"""So much better under another order of its outputs is no teacher by chance."""


class Teacher(Settings):
    """Which model teaches, and what is done to it first."""

    model: str | FreshTransformer
    """A local folder, a model hub name, or a Transformer to be trained from scratch."""
    revision: str | None = None
    """Of a hub model: a commit hash pins it."""
    training: Training | None = None
    """Fine-tune it on the sweep's training rows. None: it is already fine-tuned and taken as it is."""
    labels: Names | None = None
    """What the outputs of a teacher that is taken as it is mean, in its own order, by the data's names; for a teacher
    whose config has other names, none, or another order."""
    above_chance: float = Field(0.05, ge=0, lt=1)
    """How far above the share of the most frequent label its validation accuracy must be; half of the way to 1 where
    that is less."""

    @property
    def display_name(self) -> str:
        """The teacher's name in tags."""
        return self.model if isinstance(self.model, str) else "from scratch"


def obtain_source(teacher: Teacher, task: Task, splits: Splits, paths: StoragePaths, seed: int) -> Pretrained:
    """The teacher before any fine-tuning, in the storage's cache. Raises TeacherError if it cannot serve."""
    if isinstance(teacher.model, FreshTransformer):
        if teacher.training is None:
            raise TeacherError(
                "teacher.training: a teacher from scratch must be trained; give Teacher(training=Training(...))."
            )
        return _fresh(teacher.model, task, splits, paths, seed)
    folder = find_model(teacher.model, teacher.revision, "teacher.model")
    if teacher.training is not None:
        return import_model(folder, task, Head(splits.labels), paths, seed)
    _check_labels(teacher, task, folder, splits.labels)
    named = teacher.labels if sorted(teacher.labels or ()) == sorted(splits.labels) else None
    return import_model(folder, task, Head(splits.labels, named, must_be_trained=True), paths, seed)


@dataclass(frozen=True)
class FineTuning:
    """What the fine-tuning of a teacher starts from."""

    source: Pretrained
    tokens: TokenSet
    task: Task
    seed: int


def obtain_teacher(
    teacher: Teacher, start: FineTuning, paths: StoragePaths, pool: Pool, on_report: Callable[[Report], None]
) -> Pretrained:
    """The teacher ready to teach: the source itself, or the source fine-tuned on a slot, cached by content."""
    if teacher.training is None:
        return start.source
    key = fingerprint(start.source.key, start.tokens.key, identifying_values(teacher.training), start.seed)
    ready = Pretrained(paths.teacher(key), key)
    if not fetch(ready.folder).exists():
        job = FineTune(start, teacher.training, ready.folder, pool.threads_alone)
        with closing(pool.run(job, f"teacher-{key}")) as reports:  # type: ignore[type-var]
            for report in reports:
                on_report(report)
    return ready


@dataclass(frozen=True)
class FineTune:
    """The job that fine-tunes a teacher on labels and writes it into `target`."""

    start: FineTuning
    training: Training
    target: Path
    threads: int = 1
    """Processor threads: all that the node has for this worker, because no other job runs at the same time."""

    def __call__(self, worker: Worker) -> Iterator[Report]:
        with torch_threads(self.threads):
            model = self.start.source.model()
            reports = yield from fit(model, self._plan(model, worker), worker)
            if worker.rank == 0 and reports:
                with replace_folder(self.target) as folder:
                    save_model(model.cpu(), self.start.source.tokenizer(), folder)
                remove(self._checkpoint)

    @property
    def _checkpoint(self) -> Path:
        return self.target.with_suffix(".checkpoint")

    def _plan(self, model: nn.Module, worker: Worker) -> TrainingPlan:
        rows, validation = self.start.tokens.rows("train"), self.start.tokens.rows("validation")
        dtype = autocast_dtype(self.training.precision, worker.device, model)
        labels_only = Distillation().labels_only()

        def loss_of(logits: Tensor, batch: Batch) -> Loss:
            return labels_only.loss(logits, None, batch.labels_B)

        def evaluate(model: nn.Module, last: bool) -> dict[str, float]:
            logits = compute_logits(model, validation, 4 * self.training.batch_size, worker, None if last else dtype)
            return self.start.task.metrics(logits, validation.labels)

        return TrainingPlan(rows, self.training, loss_of, evaluate, self.start.seed, self._checkpoint)


def check_quality(teacher: Teacher, logits_NxC: np.ndarray, labels_N: np.ndarray, names: Sequence[str]) -> None:
    """Raise TeacherError for a teacher near chance on the validation rows, or one that is much better when some of its
    outputs are exchanged; that mapping is offered."""
    accuracy = float((logits_NxC.argmax(1) == labels_N).mean())
    chance = float(np.bincount(labels_N, minlength=len(names)).max() / len(labels_N))
    needed = chance + min(teacher.above_chance, (1 - chance) / 2)
    confusion = confusion_matrix(labels_N, logits_NxC.argmax(1), labels=range(len(names)))
    label_of_output = linear_sum_assignment(confusion.T, maximize=True)[1]
    mapped = float(confusion.T[np.arange(len(names)), label_of_output].sum() / len(labels_N))
    exchanged = teacher.training is None and mapped >= needed and mapped > accuracy + EXCHANGED_GAIN
    if accuracy >= needed and not exchanged:
        return
    near = f", near chance ({chance:.3f} of the rows have one label)" if accuracy < needed else ""
    said = f"the teacher's validation accuracy is {accuracy:.3f}{near}"
    if exchanged:
        meant = dict(zip(names, (names[label] for label in label_of_output), strict=True))
        order = ",".join(meant[name] for name in teacher.labels or names)
        raise TeacherError(
            f"{said}, but would be {mapped:.3f} if its outputs meant, in order, {order}: teacher and data disagree "
            f"about the order of the labels. Say --set teacher.labels={order}."
        )
    raise TeacherError(
        f"{said}; at least {needed:.3f} is asked for (teacher.above_chance={teacher.above_chance}). "
        f"Fine-tune it (longer), or give a teacher of this task."
    )


def _fresh(model: FreshTransformer, task: Task, splits: Splits, paths: StoragePaths, seed: int) -> Pretrained:
    texts = [*splits.train["text"], *(splits.train["pair"] if "pair" in splits.train.column_names else ())]
    key = fingerprint("fresh", model.model_dump(), splits.key, list(splits.labels), seed, len(texts))

    def make(target: Path) -> None:
        save_model(*model.create(texts, splits.labels, task.max_length, seed), target)

    return Pretrained(cached_folder(paths.model(key), make), key)


def _check_labels(teacher: Teacher, task: Task, folder: Path, labels: tuple[str, ...]) -> None:
    """Raise TeacherError when the outputs of a teacher that is taken as it is are not the data's labels, in order."""
    own = teacher.labels or task.model_labels(folder)
    same = [name.casefold() for name in own] == [name.casefold() for name in labels]
    unnamed = all(name == f"LABEL_{i}" for i, name in enumerate(own)) and len(own) == len(labels)
    named = teacher.labels is not None and sorted(own) == sorted(labels)
    if same or named or unnamed:  # without names, only the validation accuracy can tell: check_quality
        return
    where = "teacher.labels" if teacher.labels else f"teacher.model {folder}"
    came = f"{where}: the teacher's labels are {', '.join(own)}; the data's are {', '.join(labels)}."
    if len(own) != len(labels):
        raise TeacherError(f"{came} Their number differs: fine-tune the teacher, Teacher(..., training=Training()).")
    if {name.casefold() for name in own} == {name.casefold() for name in labels}:
        of = {name.casefold(): name for name in labels}
        order = ",".join(of[name.casefold()] for name in own)
        raise TeacherError(f"{came} Only the order differs: say --set teacher.labels={order}.")
    raise TeacherError(
        f"{came} Say what each output means in the data's words, in the teacher's order, such as "
        f"--set teacher.labels={','.join(labels)}."
    )
