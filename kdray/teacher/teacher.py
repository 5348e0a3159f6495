"""Obtain a teacher: find or create it, fine-tune it on a slot if requested, and refuse it if it is not good enough.

The training loop is `training.fit`, the same as for students. `transfer` writes the teacher's outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from torch import nn
from transformers import PreTrainedModel

from kdray.data.rows import Rows
from kdray.data.splits import Data, Splits
from kdray.data.tokens import TokenSet
from kdray.errors import TeacherError
from kdray.evaluation.formatting import heading
from kdray.evaluation.outputs import compute_logits
from kdray.losses.distillation import Distillation
from kdray.losses.distribution import Distribution
from kdray.losses.objective import Objective
from kdray.models.checks import loading_errors
from kdray.models.families import depends_on_padding
from kdray.models.fresh import FreshTransformer
from kdray.models.pretrained import Head, Pretrained, cached_folder, find_model, import_model, save_model
from kdray.settings import Names, Settings, identifying_values, later_field
from kdray.slots.job import Pool, Report, Worker, torch_threads
from kdray.storage.files import fingerprint, replace_folder
from kdray.storage.mirror import delete, fetch
from kdray.storage.paths import StoragePaths
from kdray.tasks.kept_thresholds import write_thresholds
from kdray.tasks.task import Outputs, Task
from kdray.teacher.answer_file import NameOrAnswerFile
from kdray.teacher.labels import check_head, check_labels
from kdray.training.fit import TrainingPlan, fit
from kdray.training.precision import autocast_dtype
from kdray.training.settings import Training

EXCHANGED_GAIN = 0.1
"""A teacher whose quality is higher by more than this with another order of its outputs has exchanged outputs: chance
does not explain that much."""

TRAINED = "Teacher(..., training=Training())"


class Teacher(Settings):
    """Which model teaches, and how it is prepared."""

    model: str | FreshTransformer | tuple[str | FreshTransformer, ...] | None = None
    """A local folder, a model hub name, or a Transformer that is trained from scratch. A list of several: the mean of
    their probabilities teaches, and students are built from the one that `student.source` names."""
    weights: tuple[float, ...] | None = later_field(None)
    """How much each of several models counts in the mean; None: all the same."""
    outputs: NameOrAnswerFile | None = later_field(None)
    """A file with the answers of a teacher that is no model here, in place of `model`: its name, or its settings."""
    revision: str | None = None
    """The revision of a hub model. A commit hash makes sure that the model does not change."""
    training: Training | None = None
    """Fine-tunes the model on the sweep's training rows. None: the model is already fine-tuned and is not changed."""
    data: Data | None = later_field(None)
    """The rows that the model is fine-tuned on, if they are other ones than those of the students, such as a public
    dataset with the same labels. Rows that stand in validation or test of the sweep, too, are left out."""
    labels: Names | None = None
    """What the outputs of an already fine-tuned teacher mean: the data's label names in the order of the outputs. For a
    teacher whose config has other names, no names, or another order."""
    above_chance: float = Field(0.05, ge=0, lt=1)
    """How far the teacher's quality on the validation rows must be above that of the best answers that do not depend on
    the text, such as always the most frequent label. If half of the distance from that quality to 1 is less, then half
    of that distance."""

    @property
    def models(self) -> tuple[str | FreshTransformer, ...]:
        """All models that teach together; none if the teacher is a file."""
        if self.model is None:
            return ()
        return self.model if isinstance(self.model, tuple) else (self.model,)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weight of each of `models`; together 1."""
        weights = self.weights or (1.0,) * len(self.models)
        return tuple(weight / sum(weights) for weight in weights)

    @property
    def display_name(self) -> str:
        """The teacher's name in MLflow tags."""
        if self.outputs is not None:
            return self.outputs.source
        return " + ".join(display_name(model) for model in self.models)

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if (self.model is None) == (self.outputs is None):
            raise ValueError(
                "give either model, a folder or a model hub name (or a list of them), or outputs, a file with answers."
            )
        if self.outputs is not None:
            self._check_file()
        if self.model == ():
            raise ValueError("model: got an empty list; give at least one model.")
        if self.revision is not None and len(self.models) > 1:
            raise ValueError("revision: several models have no common revision; download them, and give their folders.")
        if self.data is not None:
            self._check_data(self.data)
        if self.training is not None and self.training.quantised != "no":
            raise ValueError(
                f"training.quantised: got {self.training.quantised!r}, but only students are trained with int8 in "
                "mind. Leave it out of teacher.training."
            )
        self._check_weights()
        return self

    def _check_data(self, data: Data) -> None:
        if self.training is None:
            raise ValueError(f"data: is for a teacher that is fine-tuned here, {TRAINED}. Leave it out.")
        if data.unlabelled is not None or data.keep_unlabelled or data.max_labelled is not None:
            raise ValueError(
                "data: a teacher is fine-tuned on labelled rows. Give text without labels, and max_labelled, in the "
                "sweep's own data."
            )

    def _check_file(self) -> None:
        for name in ("revision", "training", "data", "labels"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: has no meaning for a teacher that is a file (outputs). Leave it out.")

    def _check_weights(self) -> None:
        if self.weights is None:
            return
        if len(self.models) < 2:
            raise ValueError(
                "weights: they are for several models, model=[a, b]; there is one teacher. Leave them out."
            )
        if len(self.weights) != len(self.models):
            raise ValueError(f"weights: got {len(self.weights)} for {len(self.models)} models; give one for each.")
        if min(self.weights) < 0 or not sum(self.weights):
            given = ", ".join(f"{weight:g}" for weight in self.weights)
            raise ValueError(f"weights: got {given}; none may be negative, and at least one must be above 0.")


def display_name(model: str | FreshTransformer) -> str:
    """The name of one model in tags and tables."""
    return model if isinstance(model, str) else "from scratch"


def obtain_sources(
    teacher: Teacher, task: Task, splits: Splits, paths: StoragePaths, seed: int
) -> tuple[Pretrained, ...]:
    """Find or create each of the models before any fine-tuning; see `obtain_source`.

    The seed of each model is its own, so that one backbone in the list three times is three teachers.
    """
    return tuple(
        obtain_source(teacher.model_copy(update={"model": model}), task, splits, paths, seed + number)
        for number, model in enumerate(teacher.models)
    )


def obtain_source(teacher: Teacher, task: Task, splits: Splits, paths: StoragePaths, seed: int) -> Pretrained:
    """Find or create the only model before any fine-tuning, and copy it into the storage's cache.

    Raises TeacherError if there is no such model, or if it has no safetensors weights. If it is not fine-tuned here, it
    must also have a trained head for the task and the data's labels. Raises SpecError if the model cannot read the
    task's longest texts.
    """
    (model,) = teacher.models
    if isinstance(model, FreshTransformer):
        if teacher.training is None:
            raise TeacherError(
                "teacher.training: a teacher from scratch must be trained; give Teacher(training=Training(...))."
            )
        return _obtain_fresh_source(model, task, splits, paths, seed)
    folder = find_model(model, teacher.revision, "teacher.model")
    if teacher.training is not None:
        _refuse_training(folder)
        return import_model(folder, task, Head(splits.labels), paths, seed)
    check_head(task, folder, splits.labels)
    check_labels(splits.labels, teacher.labels, task, folder)
    # Labels such as LABEL_0, or the data's names in another case, give no new order of the outputs.
    outputs = teacher.labels if sorted(teacher.labels or ()) == sorted(splits.labels) else None
    return import_model(folder, task, Head(splits.labels, outputs, must_be_trained=True), paths, seed)


@dataclass(frozen=True)
class FineTuning:
    """The inputs of the fine-tuning of a teacher."""

    source: Pretrained
    tokens: TokenSet
    """The rows to fine-tune it on, in the ids of its tokenizer."""
    task: Task
    seed: int


def obtain_teacher(
    teacher: Teacher, start: FineTuning, paths: StoragePaths, pool: Pool, on_report: Callable[[Report], None]
) -> Pretrained:
    """Fine-tune the source on a slot and cache the result; if the teacher has no training, return the source itself.

    The cache key is a fingerprint of everything that the fine-tuning depends on. `on_report` receives the evaluations
    of the fine-tuning, or nothing if the teacher is already in the cache.
    """
    if teacher.training is None:
        return start.source
    key = fingerprint(start.source.key, start.tokens.labelled_key, identifying_values(teacher.training), start.seed)
    fine_tuned = Pretrained(paths.teacher(key), key)
    if not fetch(fine_tuned.folder).exists():
        job = FineTune(start=start, training=teacher.training, target=fine_tuned.folder, threads=pool.threads_alone)
        # Closing the reports stops the job, also if `on_report` raises.
        with closing(pool.run(job, f"teacher-{key}")) as reports:  # type: ignore[type-var]
            for report in reports:
                on_report(report)
    return fine_tuned


@dataclass(frozen=True)
class FineTune:
    """The job that fine-tunes a teacher on the labels and writes it into the folder `target`."""

    start: FineTuning
    training: Training
    target: Path
    threads: int = 1
    """Processor threads of each worker. They may be those of all slots, because no other job runs at the same time."""

    def __call__(self, worker: Worker) -> Iterator[Report]:
        with torch_threads(self.threads):
            model = self.start.source.model()
            gold = self.start.tokens.rows("train").gold
            distribution = self.start.task.distribution(gold).start_training(model)
            reports = yield from fit(model, self._plan(model, distribution, worker), worker)
            if worker.rank == 0 and reports:
                distribution.end_training(model)
                with replace_folder(self.target) as folder:
                    save_model(model.cpu(), self.start.source.tokenizer(), folder)
                delete(self._checkpoint)

    @property
    def _checkpoint(self) -> Path:
        return self.target.with_suffix(".checkpoint")

    def _plan(self, model: PreTrainedModel, distribution: Distribution, worker: Worker) -> TrainingPlan:
        rows, validation = self.start.tokens.rows("train"), self.start.tokens.rows("validation")
        dtype = autocast_dtype(self.training.precision, worker.device, model)
        task = self.start.task

        def evaluate(module: nn.Module, last: bool) -> dict[str, float]:
            logits = compute_logits(module, validation, 4 * self.training.batch_size, worker, None if last else dtype)
            outputs = task.outputs(distribution.in_data_units(logits), validation)
            write_thresholds(model.config, outputs.thresholds_C)
            return task.values(outputs, validation)

        return TrainingPlan(
            rows=rows,
            epoch_rows=-(-len(rows) // self.start.tokens.layout.repeats),
            training=self.training,
            objective=Objective(Distillation().labels_only(), distribution),
            evaluate=evaluate,
            seed=self.start.seed,
            checkpoint=self._checkpoint,
        )


def check_quality(teacher: Teacher, task: Task, outputs: Outputs, validation: Rows, owner: str = "the teacher") -> None:
    """Raise TeacherError if the teacher is near chance on the validation rows, has exchanged outputs, or other units.

    Outputs are exchanged if another order of them makes the quality of an already fine-tuned teacher much higher. The
    error then names that order. `owner` is the model in the message.
    """
    metric = heading(task.quality.name)
    quality, chance = task.values(outputs, validation)[task.quality.name], task.chance(validation)
    required = task.required_quality(chance, teacher.above_chance)
    is_enough = task.quality.is_as_good(quality, required)
    best, order = task.exchanged_outputs(outputs, validation) or (quality, [])
    is_exchanged = teacher.training is None and best >= required and best > quality + EXCHANGED_GAIN
    if is_enough and not is_exchanged:
        if teacher.training is None and (problem := task.other_units(outputs, validation)):
            other = "Correct the answers" if teacher.outputs else f"Fine-tune the teacher, {TRAINED}"
            raise TeacherError(
                f"{owner}'s validation {metric} is {quality:.3f}, but {problem}. {other}; or give the data in its "
                "units."
            )
        return
    is_worse = not task.quality.is_as_good(quality, chance)
    # A perplexity has no upper limit: that of a model which is not trained is far from that of the frequent tokens.
    place = "worse than chance" if is_worse and task.quality.direction == "minimize" else "near chance"
    near = f", {place} ({chance:.3f} for answers that do not depend on the text)" if not is_enough else ""
    problem = f"{owner}'s validation {metric} is {quality:.3f}{near}"
    if is_exchanged:
        said = _said_order(teacher, validation.labels, order)
        remedy = f"Say --set teacher.labels={said}."
        if teacher.outputs:
            remedy = f"Exchange the names of the columns of {teacher.outputs.source}."
        raise TeacherError(
            f"{problem}, but would be {best:.3f} if its outputs meant, in order, {said}: teacher and data "
            f"disagree about the order of the labels. {remedy}"
        )
    bound = "at least" if task.quality.direction == "maximize" else "at most"
    remedy = "Correct the answers" if teacher.outputs else "Fine-tune it (longer)"
    raise TeacherError(
        f"{problem}; {bound} {required:.3f} is required (teacher.above_chance={teacher.above_chance}). "
        f"{remedy}, or give a teacher of this task."
    )


def _said_order(teacher: Teacher, names: Sequence[str], order: Sequence[int]) -> str:
    """The value of `teacher.labels` with which the outputs have this order (the label of each output)."""
    meaning = dict(zip(names, (names[label] for label in order), strict=True))
    # The setting has one name for each output of the original model, so the order starts from teacher.labels.
    # Names that are not the data's (LABEL_0, another case) did not reorder the outputs.
    outputs_in_order = teacher.labels if teacher.labels and sorted(teacher.labels) == sorted(names) else names
    return ",".join(meaning[name] for name in outputs_in_order)


def _obtain_fresh_source(
    model: FreshTransformer, task: Task, splits: Splits, paths: StoragePaths, seed: int
) -> Pretrained:
    """Create a Transformer with random weights, and a tokenizer for the training rows, in the storage's cache."""
    # More text gives the tokenizer more words.
    parts = [splits.train] if splits.unlabelled is None else [splits.train, splits.unlabelled]
    columns = [part[name] for part in parts for name in ("text", "pair") if name in part.column_names]
    more = () if splits.more_key is None else (splits.more_key,)
    # The model has as many positions; the keys of earlier versions, which did not name them, stay for the default.
    if task.max_length != Task.model_fields["max_length"].default:
        more = (*more, f"max_length {task.max_length}")
    if task.is_causal:
        more = (*more, "causal")
    count = sum(map(len, columns))
    key = fingerprint("fresh", model.model_dump(), splits.key, list(splits.labels), seed, count, *more)

    def make(target: Path) -> None:
        # The words of a task that answers for each word are separated already.
        read = [text if isinstance(text, str) else " ".join(text) for column in columns for text in column]
        save_model(*model.create(read, splits.labels, task, seed), target)

    return Pretrained(cached_folder(paths.model(key), make), key)


def _refuse_training(folder: Path) -> None:
    """Raise TeacherError for a model that kdray cannot fine-tune, because batches are padded."""
    with loading_errors(folder):
        family = Pretrained(folder, "").config().model_type
    if depends_on_padding(family):
        raise TeacherError(
            f"teacher.training: the answer of a {family} model for a text depends on the padding behind the text, and "
            f"kdray trains in padded batches. Fine-tune {folder} elsewhere, and leave out teacher.training."
        )
