"""Recipe: all settings of a trial; Trial: the job that trains one student.

This module does not depend on search and tracking: a trial gets its recipe and its inputs, and yields the metrics of
each evaluation.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import TypeAdapter
from torch import nn
from transformers import PreTrainedModel

from kdray.augmentation.settings import Augmentation
from kdray.data.rows import Rows
from kdray.data.tokens import TokenSet
from kdray.data.transfer_set import TransferSet
from kdray.evaluation.outputs import compute_logits
from kdray.evaluation.quality import student_quality
from kdray.losses.distillation import Distillation
from kdray.losses.distribution import Distribution
from kdray.losses.objective import Objective
from kdray.models.pretrained import Pretrained, save_model
from kdray.settings import Settings, identifying_values, later_field
from kdray.slots.job import Report, Worker
from kdray.storage.files import fingerprint, upload_folder, write_json
from kdray.storage.mirror import delete, fetch
from kdray.storage.records import read_value
from kdray.students.kinds import AnyStudent
from kdray.students.transformer import TransformerStudent
from kdray.tasks.kept_thresholds import read_thresholds, write_thresholds
from kdray.tasks.task import Outputs, Task
from kdray.training.fit import TrainingPlan, fit
from kdray.training.fused_trials import FusedTrials
from kdray.training.inside import Inside, open_objective
from kdray.training.precision import autocast_dtype
from kdray.training.quantising import EVALUATION_ROWS, Quantising, int8_quality
from kdray.training.settings import Training
from kdray.training.signal import Signal

EVALUATION_BATCH_SIZE = 128
"""Rows in one forward pass when a finished student is evaluated."""


SETTINGS_OF_A_MEMBER = ("learning_rate", "warmup", "weight_decay", "clip_norm", "epochs", "evaluations_per_epoch")
"""The settings of a training in which the students of one batch of models may differ."""

LearnFrom: TypeAlias = Literal["all text", "labelled rows"]


class Recipe(Settings):
    """All settings of a trial. The `space` of a sweep can search over each of them, by dotted name."""

    student: AnyStudent = TransformerStudent()
    distillation: Distillation = Distillation()
    training: Training = Training()
    augmentation: Augmentation = later_field(Augmentation())
    learn_from: LearnFrom = later_field("all text")
    """What the student sees: all text, or the labelled rows alone, in as many steps. Controls see the latter."""


@dataclass(frozen=True)
class TrialInputs:
    """The inputs of all trials with the same source model."""

    task: Task
    source: Pretrained
    """The model that students are built from: the teacher, or a smaller checkpoint."""
    tokens: TokenSet
    """The rows as token ids of the source's tokenizer."""
    transfer: TransferSet
    signal: Signal | None = None
    """Where the states of the teacher come from that inner terms compare; None: there are none."""

    def rows(self, split: str, worker: Worker) -> Rows:
        """The rows of a split with the teacher's logits. Their files stay open in the worker for the next job."""
        key = ("rows", self.tokens.folder, self.transfer.folder, split)
        return worker.cached(key, lambda: self.transfer.rows(self.tokens, split))

    def texts(self, recipe: Recipe, worker: Worker) -> Rows:
        """The rows that a student with this recipe learns from, with the teacher's logits."""
        labelled = self.rows("train", worker)
        count = len(labelled) if recipe.learn_from == "labelled rows" else self.text_rows(recipe)
        if count == len(labelled):
            return labelled
        key = ("texts", self.tokens.folder, self.transfer.folder, count)
        return worker.cached(key, lambda: self.transfer.all_rows(self.tokens, "train").first(count))

    def text_rows(self, recipe: Recipe) -> int:
        """The number of rows that a trial with this recipe learns from: all texts and their copies."""
        return self.tokens.texts(recipe.augmentation.copies)

    def epoch_rows(self, recipe: Recipe) -> int:
        """The number of rows that make an epoch of a trial with this recipe."""
        return self.tokens.epoch_rows(recipe.augmentation.copies)

    def has_more_text(self, recipe: Recipe) -> bool:
        """Whether there is more text for this recipe than the labelled rows."""
        return self.text_rows(recipe) > self.tokens.train_ends[0]

    def teacher_outputs(self, split: str, worker: Worker) -> Outputs:
        """The teacher's outputs for the rows of a split. Its thresholds are those of the validation rows."""
        validation = self.rows("validation", worker)
        of_validation = self.task.outputs(validation.teacher_logits(), validation)
        if split == "validation":
            return of_validation
        return Outputs(self.rows(split, worker).teacher_logits(), of_validation.thresholds_C)

    def student_outputs(self, model: PreTrainedModel, split: str, worker: Worker) -> Outputs:
        """The outputs of a finished student for the rows of a split, in float32, with the student's own thresholds."""
        logits_AxC = compute_logits(model, self.rows(split, worker), EVALUATION_BATCH_SIZE, worker, None)
        return Outputs(logits_AxC, read_thresholds(model.config))


@dataclass(frozen=True)
class Trial:
    """The job that trains and evaluates one student, and writes the finished student into the folder `target`.

    During the training there is a checkpoint beside `target`. After the training there is a file with all reports of
    the trial instead, so that the student is not trained again if the driver died before it received the last report.
    """

    recipe: Recipe
    inputs: TrialInputs
    seed: int
    target: Path

    def __call__(self, worker: Worker) -> Iterator[Report]:
        # Rank 0 decides for all ranks: they must either all train or all end here.
        if worker.broadcast(self.has_ended):
            yield from read_reports(self.target)
            return
        model, distribution = self.build(worker)
        reports = yield from self._train(model, distribution, worker)
        if worker.rank == 0 and reports:
            self.save(model, distribution, reports, worker)

    @property
    def has_ended(self) -> bool:
        """Whether its training is complete."""
        return fetch(reports_file(self.target)).exists()

    @property
    def fuse_key(self) -> str:
        """See `FusableJob`. What a training computes for each student of a batch of models by itself may differ."""
        recipe, inputs = self.recipe, self.inputs
        is_large = inputs.tokens.layout.top_k is not None  # outputs over a vocabulary are computed in parts
        if recipe.distillation.inner_terms or recipe.training.quantised != "no" or is_large:
            return ""
        own = {name: Training.model_fields[name].default for name in SETTINGS_OF_A_MEMBER}
        training = recipe.training.model_copy(update=own)
        same = recipe.model_copy(update={"distillation": Distillation(), "training": training})
        files = inputs.tokens.folder, inputs.transfer.folder
        return fingerprint(identifying_values(same), self.seed, inputs.source.key, *map(str, files))

    def fused_with(self, others: Sequence["Trial"]) -> FusedTrials:
        """See `FusableJob`."""
        return FusedTrials((self, *others))

    def build(self, worker: Worker) -> tuple[PreTrainedModel, Distribution]:
        """The student before its training, and the distribution of its outputs in the training."""
        source = worker.cached(("source", self.inputs.source.key), self.inputs.source.model)
        model = self.recipe.student.build(source, self.seed)
        return model, self.inputs.task.distribution(self.inputs.rows("train", worker).gold).start_training(model)

    def save(
        self, model: PreTrainedModel, distribution: Distribution, reports: Sequence[Report], worker: Worker
    ) -> None:
        """Write the student after its training, with all reports, in place of its checkpoint."""
        distribution.end_training(model)
        tokenizer = worker.cached(("tokenizer", self.inputs.source.key), self.inputs.source.tokenizer)
        with upload_folder(self.target) as folder:
            save_model(model.cpu(), tokenizer, folder)
        # In this order: at any moment there is a checkpoint to continue from, or the finished student.
        write_json(reports_file(self.target), reports)
        delete(self._checkpoint)

    @property
    def _checkpoint(self) -> Path:
        return self.target.with_name("checkpoint.pt")

    def _train(
        self, model: PreTrainedModel, distribution: Distribution, worker: Worker
    ) -> Generator[Report, None, list[Report]]:
        recipe = self.recipe
        model.to(worker.device)  # before its layers are recorded, which runs it
        student = (model, recipe.student.inner_layers(model))
        with open_objective(
            recipe.distillation,
            distribution,
            student,
            self.inputs.signal,
            self.seed,
            worker,
            answers_live=self.inputs.tokens.is_masked_anew("train"),
        ) as opened:
            return (yield from fit(model, self.plan(model, distribution, worker, opened), worker))

    def plan(
        self,
        model: PreTrainedModel,
        distribution: Distribution,
        worker: Worker,
        opened: tuple[Objective, Inside | None] | None = None,
    ) -> TrainingPlan:
        """The training of the student. `opened`: what `open_objective` gives; None for one without inner terms."""
        objective, inside = opened or (Objective(self.recipe.distillation, distribution), None)
        training = self.recipe.training
        validation = self.inputs.rows("validation", worker)
        dtype = autocast_dtype(training.precision, worker.device, model)

        quantising = Quantising.of(model, training)
        task, teacher = self.inputs.task, self.inputs.teacher_outputs("validation", worker)

        def evaluate(module: nn.Module, last: bool) -> dict[str, float]:
            # Trials are compared by the last evaluation, so it is in float32, as is a student that is loaded again.
            logits = compute_logits(module, validation, 4 * training.batch_size, worker, None if last else dtype)
            student = task.outputs(distribution.in_data_units(logits), validation)
            write_thresholds(model.config, student.thresholds_C)
            metrics = student_quality(task, student, teacher, validation)
            if quantising is None or not quantising.is_on:
                return metrics
            with quantising.forward():
                logits = compute_logits(module, validation, EVALUATION_ROWS, worker, None if last else dtype)
            # The file is served with the thresholds of the student.
            int8 = Outputs(distribution.in_data_units(logits), student.thresholds_C)
            return metrics | int8_quality(task, int8, student, validation)

        return TrainingPlan(
            rows=self.inputs.texts(self.recipe, worker),
            epoch_rows=self.inputs.epoch_rows(self.recipe),
            training=training,
            objective=objective,
            inside=inside,
            evaluate=evaluate,
            seed=self.seed,
            checkpoint=self._checkpoint,
            quantising=quantising,
        )


REPORTS: TypeAdapter[list[Report]] = TypeAdapter(list[dict[str, int | float | bool | str | None]])
"""The reports of a training as its file has them."""


def reports_file(student: Path) -> Path:
    """The file with all reports of a student. It exists if the student's training is complete."""
    return student.with_name("ended.json")


def read_reports(student: Path) -> tuple[Report, ...]:
    """All reports of a student whose training is complete. Raises StorageError if the file cannot be read."""
    reports: list[Report] = read_value(REPORTS, fetch(reports_file(student)))
    return tuple(reports)


@dataclass(frozen=True)
class EvaluateStudent:
    """The job that loads a finished student from its folder and evaluates it on one split, in float32.

    The first report has the metrics. With `by_label`, there is one more report for each label, with the keys `label`,
    `f1` and `count`: see `LabelFigures`.
    """

    inputs: TrialInputs
    student: Pretrained
    split: str
    by_label: bool = False

    def __call__(self, worker: Worker) -> Iterator[Report]:
        inputs, model = self.inputs, self.student.model().to(worker.device)
        student = inputs.student_outputs(model, self.split, worker)
        teacher, rows = inputs.teacher_outputs(self.split, worker), inputs.rows(self.split, worker)
        yield student_quality(inputs.task, student, teacher, rows)
        if self.by_label and student.are_finite:
            for label, figures in (inputs.task.label_figures(student, rows) or {}).items():
                yield {"label": label, **asdict(figures)}
