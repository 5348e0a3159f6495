"""Sweep: the one value that says everything, composed of the parts' own settings and cross-checked here.

A setting is explained where it belongs: `training.epochs` in training.py, `search.trials` in search/searcher.py.
"""

import json
from collections.abc import Mapping
from typing import Any, Self

from optuna.distributions import distribution_to_json, json_to_distribution
from pydantic import Field, model_validator

from kdray.choice.reruns import Confirm
from kdray.choice.rule import Choose
from kdray.data.splits import Data, Splits
from kdray.errors import SpecError, did_you_mean
from kdray.evaluation.measuring import ARCHITECTURE_METRICS, Latency
from kdray.losses.distillation import Distillation
from kdray.models.transformer import TransformerStudent
from kdray.search.settings import Search
from kdray.search.space import Space, architectures, check_space, distributions, domains
from kdray.settings import MAY_CHANGE, Settings, dotted_values, identifying_values
from kdray.slots.pool import SlotSettings
from kdray.tasks.text_classification import TextClassification
from kdray.teacher.teacher import Teacher
from kdray.teacher.transfer import Transfer
from kdray.tracking.settings import Tracking
from kdray.training.settings import Training
from kdray.training.trial import Recipe

COMPARED = ("agreement", "retention", "loss")


class Sweep(Settings):
    """A teacher, data, a space of students, a budget and a rule to choose by."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    data: Data
    teacher: Teacher
    task: TextClassification = TextClassification()
    transfer: Transfer = Transfer()
    student: TransformerStudent = TransformerStudent()
    distillation: Distillation = Distillation()
    training: Training = Training()
    space: dict[str, Any] = Field(min_length=1)
    """Dotted name of a trial's setting -> Ray Tune domain, or a list of values."""
    search: Search = Search()
    latency: Latency = Latency()
    choose: Choose = Field(Choose(), json_schema_extra=MAY_CHANGE)
    confirm: Confirm = Field(Confirm(), json_schema_extra=MAY_CHANGE)
    slots: SlotSettings = Field(SlotSettings(), json_schema_extra=MAY_CHANGE)
    tracking: Tracking = Field(Tracking(), json_schema_extra=MAY_CHANGE)
    seed: int = Field(0, ge=0)
    smoke: dict[str, Any] = Field(default_factory=dict, json_schema_extra=MAY_CHANGE)
    """Settings by dotted name that make the same sweep small: what --smoke sets."""

    @property
    def recipe(self) -> Recipe:
        """What a trial is told where `space` says nothing."""
        return Recipe(student=self.student, distillation=self.distillation, training=self.training)

    def recipe_of(self, params: Mapping[str, Any]) -> Recipe:
        """What the trial with these searched settings is told."""
        return self.recipe.with_dotted(params)

    def with_changes(self, changes: Mapping[str, Any]) -> Self:
        """A checked copy with these settings; a searched setting that is given a value is searched no more.

        Raises SpecError, also for a whole space: its domains have names.
        """
        if "space" in changes:
            raise SpecError("space: give each domain by its own name, such as --set space.student.depth=[1,2].")
        fixed = {name: value for name, value in self.space.items() if name not in changes}
        domains = {name.removeprefix("space."): value for name, value in changes.items() if name.startswith("space.")}
        others = {name: value for name, value in changes.items() if not name.startswith("space.")}
        return self.with_dotted(others | {"space": fixed | domains})

    def smoke_copy(self) -> Self:
        """The sweep that --smoke runs: the same code over fewer rows, trials and slots, under a name of its own."""
        model = self.tracking.model
        names = {"name": f"{self.name}-smoke", "tracking.model": model and f"{model}-smoke"}
        return self.with_changes({**self.smoke, **names})

    def identity(self) -> dict[str, Any]:
        """What makes it this sweep and no other, as JSON; two sweeps with the same one may share a folder."""
        fixed = identifying_values(self.model_copy(update={"space": {}}))
        domains = {name: json.loads(distribution_to_json(d)) for name, d in distributions(self.space).items()}
        return {**fixed, "space": domains}

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any], **fields: Any) -> Self:
        """The sweep with this identity, and these fields where that says nothing.

        Raises SpecError for one that this version of kdray does not understand.
        """
        told = {name: identity[name] for name in cls.model_fields if name in identity and name not in fields}
        space = domains({name: json_to_distribution(json.dumps(domain)) for name, domain in identity["space"].items()})
        return cls(**{**told, **fields, "space": space})

    @property
    def students(self) -> list[TransformerStudent]:
        """Every student that the space can make, as far as its shape goes."""
        return [self.recipe_of(params).student for params in architectures(self.space)]

    def as_params(self) -> dict[str, Any]:
        """Every setting by dotted name, domains in words: for the record."""
        flat = {name: value for name, value in dotted_values(self).items() if name not in ("space", "smoke")}
        domains = {f"space.{name}": getattr(value, "domain_str", value) for name, value in self.space.items()}
        return flat | domains

    def check_classes(self, splits: Splits) -> None:
        """Raise SpecError for an objective, constraint or rule that data with so many labels does not have."""
        self._check_metrics(self.task.metric_names(len(splits.labels)), f" with {len(splits.labels)} labels")

    @model_validator(mode="after")
    def _cross_checked(self) -> Self:
        space: Space = self.space
        check_space(space, self.recipe)
        if "student.revision" in space:
            raise SpecError(
                "space 'student.revision': a sweep cuts its students from one revision of a checkpoint. Set it as "
                "student.revision, and give each revision a sweep of its own."
            )
        self._check_metrics(self.task.metric_names(2), "")
        if self.search.objectives[0] not in (*self.task.metric_names(2), "agreement", "retention"):
            raise SpecError(
                f"search.objectives: the first one must be a quality ({', '.join(self.task.metric_names(2))}, "
                f"agreement, retention), for early stopping compares trials by it; got {self.search.objectives[0]!r}."
            )
        return self

    def _check_metrics(self, quality: tuple[str, ...], when: str) -> None:
        measured = (*quality, *COMPARED, *ARCHITECTURE_METRICS)
        asked = {f"search.objectives {name!r}": (name, measured) for name in self.search.objectives}
        asked |= {f"search.constraints {name!r}": (name, ARCHITECTURE_METRICS) for name in self.search.constraints}
        asked |= {f"choose {name!r}": (name, measured) for name in self.choose.metrics}
        for where, (name, allowed) in asked.items():
            if name not in allowed:
                raise SpecError(f"{where}: {self.task.name} does not measure that{when}; {did_you_mean(name, allowed)}")
