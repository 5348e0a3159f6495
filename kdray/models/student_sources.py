"""The models that students are built from: the teacher, or smaller checkpoints, each with the rows in its token ids."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from kdray.data.tokens import LabelledText, TokenSet, tokenise
from kdray.models.pretrained import Head, Pretrained, find_model, import_model
from kdray.models.transformer import TransformerStudent
from kdray.storage.paths import StoragePaths
from kdray.tasks.task import Task

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class BySource(Generic[T]):
    """One value for each model that students are built from."""

    teacher: T
    checkpoints: Mapping[str, T]
    """`student.checkpoint` -> the value of that checkpoint."""

    def of(self, student: TransformerStudent) -> T:
        """The value of the model that this student is built from."""
        return self.teacher if student.checkpoint is None else self.checkpoints[student.checkpoint]

    def map(self, change: Callable[[T], R]) -> "BySource[R]":
        """The same sources with `change` applied to each value."""
        return BySource(change(self.teacher), {name: change(value) for name, value in self.checkpoints.items()})


@dataclass(frozen=True)
class StudentSource:
    """A model that students are built from, and the rows in the ids of its tokenizer."""

    model: Pretrained
    tokens: TokenSet


def load_student_sources(
    students: Iterable[TransformerStudent],
    teacher: Pretrained,
    splits: LabelledText,
    task: Task,
    paths: StoragePaths,
    seed: int,
) -> BySource[StudentSource]:
    """The source of every one of these students.

    Raises SpecError for a student that its source cannot make, TeacherError for a checkpoint that cannot be used.
    """

    def source(model: Pretrained) -> StudentSource:
        return StudentSource(model, tokenise(splits, task, model.tokenizer(), paths))

    checkpoints: dict[str, StudentSource] = {}
    sources = BySource(source(teacher), checkpoints)
    for student in students:
        name = student.checkpoint
        if name is not None and name not in checkpoints:
            folder = find_model(name, student.revision, "student.checkpoint")
            checkpoints[name] = source(import_model(folder, task, Head(splits.labels), paths, seed))
        student.chosen_layers(sources.of(student).model.layers)
    return sources
