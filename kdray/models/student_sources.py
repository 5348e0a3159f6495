"""The models that students are built from, the teacher or smaller checkpoints, and the rows in the ids of each."""

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
    """The value of the setting `student.checkpoint` -> the value for that checkpoint."""

    def of(self, student: TransformerStudent) -> T:
        """The value for the model that this student is built from."""
        return self.teacher if student.checkpoint is None else self.checkpoints[student.checkpoint]

    def map(self, change: Callable[[T], R]) -> "BySource[R]":
        """The results of `change` for each value, by the same models."""
        return BySource(change(self.teacher), {name: change(value) for name, value in self.checkpoints.items()})


@dataclass(frozen=True)
class StudentSource:
    """A model that students are built from, and the rows in the ids of this model's tokenizer."""

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
    """Load the sources of these students: the teacher, and each checkpoint once.

    Raises SpecError for a student with more layers than its source, TeacherError for a checkpoint that cannot be used.
    """

    def tokenise_for(model: Pretrained) -> StudentSource:
        return StudentSource(model, tokenise(splits, task, model.tokenizer(), paths))

    checkpoints: dict[str, StudentSource] = {}
    sources = BySource(tokenise_for(teacher), checkpoints)
    for student in students:
        name = student.checkpoint
        if name is not None and name not in checkpoints:
            folder = find_model(name, student.revision, "student.checkpoint")
            checkpoints[name] = tokenise_for(import_model(folder, task, Head(splits.labels), paths, seed))
        # Called for its SpecError: a depth that the source does not have is refused before any trial starts.
        student.chosen_layers(sources.of(student).model.layers)
    return sources
