"""Sweep: all settings of a sweep as one value, composed of the settings of each part and checked together here.

Each setting is explained in the class of its part: `training.epochs` in training/settings.py, `search.trials` in
search/settings.py.
"""

import json
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from optuna.distributions import distribution_to_json, json_to_distribution
from pydantic import Field, model_validator

from kdray.augmentation.settings import Augmentation, check_ways
from kdray.choice.reruns import Confirm
from kdray.choice.rule import Choose
from kdray.data.splits import Data, Splits
from kdray.errors import SpecError, did_you_mean
from kdray.evaluation.measuring import ARCHITECTURE_METRICS, Latency
from kdray.evaluation.pareto import QUALITY
from kdray.losses.checks import LossSettings
from kdray.losses.distillation import Distillation
from kdray.models.fresh import FreshTransformer
from kdray.search.sampling import CONDITIONAL
from kdray.search.settings import Search
from kdray.search.space import SearchSpace, distributions, domains, end_values
from kdray.settings import MAY_CHANGE, Settings, dotted_values, identifying_values, later_field
from kdray.slots.pool import SlotSettings
from kdray.students.kinds import AnyStudent
from kdray.students.student import Student
from kdray.students.transformer import TransformerStudent
from kdray.tasks.kinds import KINDS, AnyTask
from kdray.tasks.text_classification import TextClassification
from kdray.teacher.teacher import Teacher
from kdray.teacher.transfer import Transfer
from kdray.tracking.settings import Tracking
from kdray.training.settings import Training, check_quantised
from kdray.training.trial import Recipe

COPIES = "augmentation.copies"
"""The setting of a trial that says how many changed copies of each text it learns from."""

STUDENT_METRICS = ("agreement", "retention", "loss")
"""The metrics of a student that do not depend on the task."""


class Sweep(Settings):
    """A teacher, data, a space of students, a budget and a rule to choose by."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    data: Data
    teacher: Teacher
    task: AnyTask = TextClassification()
    transfer: Transfer = Transfer()
    student: AnyStudent = TransformerStudent()
    augmentation: Augmentation = later_field(Augmentation())
    distillation: Distillation = Distillation()
    training: Training = Training()
    space: dict[str, Any] = Field(min_length=1)
    """Dotted name of a setting of a trial -> Ray Tune domain, or a list of values."""
    search: Search = Search()
    latency: Latency = Latency()
    choose: Choose = Field(Choose(), json_schema_extra=MAY_CHANGE)
    confirm: Confirm = Field(Confirm(), json_schema_extra=MAY_CHANGE)
    slots: SlotSettings = Field(SlotSettings(), json_schema_extra=MAY_CHANGE)
    tracking: Tracking = Field(Tracking(), json_schema_extra=MAY_CHANGE)
    seed: int = Field(0, ge=0)
    smoke: dict[str, Any] = Field(default_factory=dict, json_schema_extra=MAY_CHANGE)
    """Dotted name of a setting -> its value in the small copy of this sweep that --smoke runs."""

    @property
    def recipe(self) -> Recipe:
        """The recipe of a trial before its searched settings are applied."""
        return Recipe(
            student=self.student,
            distillation=self.distillation,
            training=self.training,
            augmentation=self.augmentation,
        )

    def recipe_of(self, params: Mapping[str, Any]) -> Recipe:
        """The recipe of the trial with these searched settings."""
        return self.recipe.with_dotted(params)

    def with_changes(self, changes: Mapping[str, Any]) -> Self:
        """A checked copy with these settings. A searched setting that gets a value here leaves the space.

        Raises SpecError for an unknown setting, a value that is not allowed, and `space` as a whole: each domain has a
        name of its own, `space.NAME`.
        """
        if "space" in changes:
            raise SpecError("space: give each domain by its own name, such as --set space.student.depth=[1,2].")
        kind = str(changes.get("task.kind", self.task.kind))
        refused = KINDS[kind].refused if kind in KINDS else {}
        if wrong := [name for name in changes if name in refused and name.startswith("task.")]:
            # Other settings are checked when the sweep is made; a task does not have these.
            raise SpecError(f"{wrong[0]}: {KINDS[kind](kind=kind).name} {refused[wrong[0]]}")
        unchanged = {name: value for name, value in self.space.items() if name not in changes}
        domains = {name.removeprefix("space."): value for name, value in changes.items() if name.startswith("space.")}
        others = {name: value for name, value in changes.items() if not name.startswith("space.")}
        return self._for_another_task(changes).with_dotted(others | {"space": unchanged | domains})

    def _for_another_task(self, changes: Mapping[str, Any]) -> Self:
        """The sweep itself; if the task changes, a copy that calls its quality metric `quality` again."""
        if not any(name.partition(".")[0] == "task" for name in changes):
            return self
        copy = self.model_copy()
        copy._rename_metric(self.task.quality.name, QUALITY)
        return copy

    def smoke_copy(self) -> Self:
        """The small sweep that --smoke runs: the same code with fewer rows, trials and slots."""
        model = self.tracking.model
        # Without names of its own, a smoke run would write into the sweep's folder and could replace its champion.
        names = {"name": f"{self.name}-smoke", "tracking.model": f"{model}-smoke" if model else model}
        return self.with_changes({**self.smoke, **names})

    def identity(self) -> dict[str, Any]:
        """The settings that identify the sweep, as JSON. A sweep with the same identity may continue in its folder."""
        values = identifying_values(self.model_copy(update={"space": {}}))
        # Optuna writes its distributions as JSON and reads them back; Tune's domains have no such form.
        domains = {name: json.loads(distribution_to_json(d)) for name, d in distributions(self.space).items()}
        return {**values, "space": domains}

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any], **fields: Any) -> Self:
        """The sweep with this identity. `fields` are its other fields, or replace fields of the identity.

        Raises SpecError for an identity that this version of kdray cannot read.
        """
        values = {name: identity[name] for name in cls.model_fields if name in identity and name not in fields}
        space = domains({name: json_to_distribution(json.dumps(domain)) for name, domain in identity["space"].items()})
        return cls(**{**values, **fields, "space": space})

    @property
    def students(self) -> list[Student]:
        """One student for each architecture that the space contains."""
        return [self.recipe_of(params).student for params in self.search_space.architectures()]

    @property
    def search_space(self) -> SearchSpace:
        """The searched settings, and which of them a trial has. Raises SpecError for a space that is not allowed."""
        return SearchSpace.checked(self.space, self.recipe)

    @property
    def most_copies(self) -> int:
        """The largest number of changed copies of a text that a trial can need."""
        return int(max(self.possible_values(COPIES)))

    @property
    def trains_for_int8(self) -> bool:
        """Whether a trial can train its student with int8 in mind."""
        return "int8" in self.possible_values("training.quantised")

    def as_params(self) -> dict[str, Any]:
        """Dotted name -> value of every setting, with domains as text: the params of the sweep's MLflow run."""
        values = {name: value for name, value in dotted_values(self).items() if name not in ("space", "smoke")}
        domains = {f"space.{name}": getattr(value, "domain_str", value) for name, value in self.space.items()}
        return values | domains

    def check_classes(self, splits: Splits) -> None:
        """Raise SpecError for what this number of labels does not have: a metric of an objective, constraint or rule,
        and a term of the loss."""
        self._loss_settings.check_outputs(len(splits.labels))
        self._check_metrics(self.task.metric_names(splits.labels), f" with {len(splits.labels)} labels")

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        space, conditions = self.space, self.search_space.conditions
        if conditions.are_any and self.search.sampler not in CONDITIONAL:
            lacking = sorted(set[str]().union(*conditions.missing.values()))
            raise SpecError(
                f"search.sampler: {self.search.sampler} draws every setting of the space for each trial, but not every "
                f"trial has {', '.join(lacking)}. Use {', '.join(CONDITIONAL[:-1])} or {CONDITIONAL[-1]}."
            )
        if "student.revision" in space:
            raise SpecError(
                "space 'student.revision': all students of a sweep are built from one revision of a checkpoint. Set "
                "student.revision, and run one sweep for each revision."
            )
        if "student.source" in space:
            raise SpecError(
                "space 'student.source': all students of a sweep are built from one of its teachers. Set "
                "student.source, and run one sweep for each."
            )
        for student in self.students:
            student.check_task(self.task)
        self._check_task()
        self._check_augmentation()
        self._check_distillation()
        check_quantised(self.training, self._searched("training."))
        self._name_quality()
        # The data are not read yet, so the labels are unknown; `check_classes` checks again with them.
        quality = self.task.metric_names(None)
        self._check_metrics(quality, "")
        first = self.search.objectives[0]
        if first not in (*quality, "agreement", "retention"):
            raise SpecError(
                f"search.objectives: the first objective must be a quality metric ({', '.join(quality)}, agreement, "
                f"retention), because early stopping compares trials by it; got {first!r}."
            )
        return self

    def _check_task(self) -> None:
        """Raise SpecError for settings, also searched ones, that have no meaning for the task."""
        for name, reason in self.task.refused.items():
            group, _, field = name.rpartition(".")
            fields = type(getattr(self, group)).model_fields
            if field in fields and any(value != fields[field].default for value in self.possible_values(name)):
                raise SpecError(f"{name}: {self.task.name} {reason}")
        if len(self.teacher.models) > 1 and not self.task.averages_teachers:
            raise SpecError(
                f"teacher.model: got {len(self.teacher.models)} models, but {self.task.name} has no mean of several "
                "teachers: of each only its most probable tokens are kept. Give one model."
            )

    def _check_augmentation(self) -> None:
        """Raise SpecError for searched settings of copies other than their number, and for ways the task does not have.

        All trials share the copies, so that each text is changed, tokenised and answered once.
        """
        for name in self.space:
            if name.startswith(COPIES.partition(".")[0]) and name != COPIES:
                raise SpecError(
                    f"space {name!r}: all trials of a sweep learn from the same copies; only {COPIES} can be searched. "
                    f"Set {name}, and run one sweep for each value."
                )
        check_ways(self.augmentation, self.task.answers_each_word)
        if self.most_copies and self.teacher.outputs is not None:
            raise SpecError(
                f"{COPIES}: the teacher is a file (teacher.outputs), which has no answers for changed texts. Leave "
                "augmentation out, or give a model as the teacher."
            )
        are_fresh = [isinstance(model, FreshTransformer) for model in self.teacher.models]
        if self.most_copies and self.augmentation.needs_embeddings and all(are_fresh):
            raise SpecError(
                "augmentation.ways: neighbours needs the embeddings of a pretrained model, but the teacher is trained "
                "from scratch. Leave neighbours out, or give a pretrained teacher."
            )

    def _check_distillation(self) -> None:
        """Raise SpecError for a setting of the loss without a meaning for the task's outputs, or without effect."""
        # The gold decides the units of the outputs, not their kind.
        self._loss_settings.check(self.task.distribution(np.zeros(1)), self.task.name)
        self._loss_settings.check_microbatches(self.possible_values("training.microbatch"))

    @property
    def _loss_settings(self) -> LossSettings:
        return LossSettings(self.distillation, self._searched("distillation."))

    def possible_values(self, setting: str) -> tuple[Any, ...]:
        """The values that a setting of a recipe, by its dotted name, has in the trials, or the ends of its range."""
        if setting in self.space:
            return end_values(distributions({setting: self.space[setting]})[setting])
        value: Any = self
        for name in setting.split("."):
            value = getattr(value, name)
        return (value,)

    def _searched(self, prefix: str) -> dict[str, tuple[Any, ...]]:
        """Name of a searched setting of a group, without the group -> its values, or the ends of its range."""
        searched = {name: value for name, value in self.space.items() if name.startswith(prefix)}
        return {name.removeprefix(prefix): end_values(each) for name, each in distributions(searched).items()}

    def _name_quality(self) -> None:
        """Write the name of the task's quality metric where it is called `quality`.

        So the folder of a sweep, the ledger and the report have the name of the metric.
        """
        name = self.task.quality.name
        self._rename_metric(QUALITY, name)

    def _rename_metric(self, old: str, new: str) -> None:
        objectives = tuple(new if name == old else name for name in self.search.objectives)
        best = new if self.choose.best == old else self.choose.best
        # The model is frozen for its users; inside its own construction its parts may be completed.
        self.__dict__["search"] = self.search.model_copy(update={"objectives": objectives})
        self.__dict__["choose"] = self.choose.model_copy(update={"best": best})

    def _check_metrics(self, quality: tuple[str, ...], condition: str) -> None:
        metrics = (*quality, *STUDENT_METRICS, *ARCHITECTURE_METRICS)
        for name in self.search.objectives:
            self._check_metric(f"search.objectives {name!r}", name, metrics, condition)
        # A constraint is checked before any training, so only the metrics of an architecture are allowed.
        for name in self.search.constraints:
            if name in metrics and name not in ARCHITECTURE_METRICS:
                raise SpecError(
                    f"search.constraints {name!r}: it is known only after the training, and constraints are checked "
                    f"before it. Allowed: {', '.join(ARCHITECTURE_METRICS)}; a rule on the quality is part of choose."
                )
            self._check_metric(f"search.constraints {name!r}", name, ARCHITECTURE_METRICS, condition)
        for name in self.choose.metrics:
            self._check_metric(f"choose {name!r}", name, metrics, condition)

    def _check_metric(self, where: str, name: str, allowed: tuple[str, ...], condition: str) -> None:
        if name not in allowed:
            raise SpecError(
                f"{where}: {self.task.name} does not measure this metric{condition}; {did_you_mean(name, allowed)}"
            )
