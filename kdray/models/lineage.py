"""Lineage: the names, the fingerprints and the figures of what the students of a sweep are made from."""

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, Field

from kdray.storage.records import Number


class EarlierSweep(BaseModel):
    """The sweep that made a teacher, or a checkpoint of the students: what its student and its teacher were measured
    to be."""

    model_config = ConfigDict(frozen=True)

    name: str
    """The name of the sweep."""
    teacher: str
    """The name of the teacher of that sweep."""
    metric: str
    """The metric of `on_test`."""
    is_on_same_rows: bool
    """Whether its test rows are those of this sweep: figures of other rows cannot be compared."""
    on_test: dict[str, Number] = {}
    """The value of `metric` on that sweep's test rows: of its `teacher` and of its `student`."""
    figures: dict[str, Number] = {}
    """The metrics of its teacher on that sweep's validation rows, and the teacher's costs."""
    measured: str = ""
    """How and on which hardware the costs were measured."""
    earlier: "EarlierSweep | None" = None
    """The sweep that made the teacher of that sweep."""
    task: str = Field("", exclude_if=lambda name: not name)
    """The name of its task; empty in the records of a teacher, whose task is that of this sweep."""
    teacher_weights: str = Field("", exclude_if=lambda key: not key)
    """`Lineage.teacher_weights` of that sweep; empty as `task` is."""
    data: str = Field("", exclude_if=lambda key: not key)
    """`Lineage.data` of that sweep; empty as `task` is."""
    read_from: str = Field("", exclude_if=lambda name: not name)
    """Where its rows came from; empty as `task` is."""

    def chain(self) -> "Iterator[EarlierSweep]":
        """This sweep, and those before it."""
        yield self
        if self.earlier is not None:
            yield from self.earlier.chain()


class TeacherModel(BaseModel):
    """One of the models that teach."""

    model_config = ConfigDict(frozen=True)

    name: str
    weights: str
    """The fingerprint of its weights, its configuration and its tokenizer."""
    share: float
    """Its weight in the mean of all models."""
    seed: int
    """The seed of its fine-tuning."""
    figures: dict[str, Number] = {}
    """Its metrics on the validation rows, and its costs."""
    gave_students: bool = True
    """Whether students are built from it."""
    earlier: EarlierSweep | None = None
    """The sweep that made it; None: no sweep, or none whose records are beside it."""


class CheckpointModel(BaseModel):
    """A checkpoint that students are built from, which an earlier sweep made."""

    model_config = ConfigDict(frozen=True)

    name: str
    """The value of the setting `student.checkpoint`."""
    weights: str
    """The fingerprint of its weights, its configuration and its tokenizer, with the head of this sweep's task."""
    earlier: EarlierSweep
    """The sweep whose chosen student it is."""


class Lineage(BaseModel):
    """The content of lineage.json. `teacher_weights`, `data` and `test_rows` are fingerprints."""

    model_config = ConfigDict(frozen=True)

    teacher: str
    """The name of the teacher."""
    teacher_weights: str
    """The teacher's weights, configuration and tokenizer; of several models together, or of the answers of a file."""
    data: str
    """All labelled rows of all splits, and the labels."""
    test_rows: str
    """The texts and labels of the test rows; it does not depend on the other splits."""
    models: tuple[TeacherModel, ...] = ()
    """The models that teach; none if the teacher is a file, and in the records of earlier versions."""

    teacher_rows: int = Field(0, exclude_if=lambda rows: not rows)
    """The number of labelled rows of its own that the teacher was fine-tuned on; 0: it has none."""
    checkpoints: tuple[CheckpointModel, ...] = Field((), exclude_if=lambda models: not models)
    """The checkpoints that students are built from and an earlier sweep made; none in records of earlier versions."""

    def with_costs(self, costs: tuple[dict[str, float], ...]) -> "Lineage":
        """The lineage in which each model has its costs, too."""
        pairs = zip(self.models, costs, strict=True)
        models = tuple(
            model.model_copy(update={"figures": {**model.figures, **own_costs}}) for model, own_costs in pairs
        )
        return self.model_copy(update={"models": models})

    def earlier_sweeps(self) -> Iterator[EarlierSweep]:
        """The sweeps that made the teachers and the checkpoints of the students, and those before them."""
        yield from self.teacher_sweeps()
        for checkpoint in self.checkpoints:
            yield from checkpoint.earlier.chain()

    def teacher_sweeps(self) -> Iterator[EarlierSweep]:
        """The sweeps that made the teachers, and those before them."""
        for model in self.models:
            if model.earlier is not None:
                yield from model.earlier.chain()
