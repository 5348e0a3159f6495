"""The models that students are built from, the teacher or smaller checkpoints, and the rows in the ids of each."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from kdray.data.tokens import TextBlocks, TokenSet, tokenise
from kdray.errors import TeacherError
from kdray.models.families import GOOD, depends_on_padding
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
    text: TextBlocks,
    task: Task,
    paths: StoragePaths,
    seed: int,
) -> BySource[StudentSource]:
    """Load the sources of these students: the teacher, and each checkpoint once.

    Raises SpecError for a student with more layers than its source, TeacherError for a checkpoint that cannot be used,
    and for a source that no student of this depth can be built from.
    """

    def tokenise_for(model: Pretrained) -> StudentSource:
        return StudentSource(model, tokenise(text, task, model.tokenizer(), paths))

    students = list(students)
    checkpoints: dict[str, StudentSource] = {}
    sources = BySource(tokenise_for(teacher), checkpoints)
    for student in students:
        name = student.checkpoint
        if name is not None and name not in checkpoints:
            folder = find_model(name, student.revision, "student.checkpoint")
            checkpoints[name] = tokenise_for(import_model(folder, task, Head(text.labels), paths, seed))
    for source, name in ((sources.teacher, None), *((source, name) for name, source in checkpoints.items())):
        _check_students([student for student in students if student.checkpoint == name], source.model)
    return sources


def refuse_students_of(source: Pretrained, students: Iterable[TransformerStudent]) -> None:
    """Raise TeacherError if a student is built from the teacher `source`, whose answer depends on padding."""
    if any(student.checkpoint is None for student in students):
        raise TeacherError(_padding_sentence(source.config().model_type))


def _check_students(students: Iterable[TransformerStudent], source: Pretrained) -> None:
    """Build each student without weights, and only for the errors: it is refused before any slot starts."""
    checked = set[object]()
    outline = None
    for student in students:
        chosen = student.chosen_layers(source.layers)
        if (chosen, student.layers == "random") in checked:
            continue
        checked.add((chosen, student.layers == "random"))
        if depends_on_padding(source.config().model_type):
            raise TeacherError(_padding_sentence(source.config().model_type))
        outline = outline or source.outline()
        student.build_outline(outline)


def _padding_sentence(family: str) -> str:
    return (
        f"student: the answer of this {family} model for a text depends on the padding behind the text, so students of "
        "it would learn from, and answer, another text in each batch. It may teach students that are built from "
        f"another model: say --set student.checkpoint=..., the folder or hub name of a model such as {', '.join(GOOD)}."
    )
