"""The models that students are built from, the teacher or smaller checkpoints, and the rows in the ids of each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from kdray.data.tokens import TextBlocks, TokenSet, tokenise
from kdray.errors import SpecError, TeacherError
from kdray.models.pretrained import Head, Pretrained, find_model, import_model
from kdray.models.student import Student
from kdray.models.transformer import padding_sentence
from kdray.storage.paths import StoragePaths
from kdray.tasks.task import Task

WITHOUT_MODEL = (
    "student.checkpoint: must be given, because the teacher is a file (teacher.outputs), and students cannot be built "
    "from a file. Name the folder or the hub name of a small model; with student.layers='random' its weights are drawn."
)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class BySource(Generic[T]):
    """One value for each model that students are built from."""

    teacher: T | None
    """The value for the teacher that students are built from; None: the teacher is a file."""
    checkpoints: Mapping[str, T]
    """The value of the setting `student.checkpoint` -> the value for that checkpoint."""

    def of(self, student: Student) -> T:
        """The value for the model that this student is built from."""
        if student.checkpoint is not None:
            return self.checkpoints[student.checkpoint]
        if self.teacher is None:
            raise TeacherError(WITHOUT_MODEL)
        return self.teacher

    @property
    def first(self) -> T:
        """The value for the teacher, or for the first checkpoint if the teacher is a file."""
        return next(iter(self.checkpoints.values())) if self.teacher is None else self.teacher

    def map(self, change: Callable[[T], R]) -> "BySource[R]":
        """The results of `change` for each value, by the same models."""
        teacher = None if self.teacher is None else change(self.teacher)
        return BySource(teacher, {name: change(value) for name, value in self.checkpoints.items()})


@dataclass(frozen=True)
class StudentSource:
    """A model that students are built from, and the rows in the ids of this model's tokenizer."""

    model: Pretrained
    tokens: TokenSet


def load_student_sources(
    students: Iterable[Student],
    teachers: Sequence[Pretrained],
    labels: tuple[str, ...],
    text_for: Callable[[Pretrained], TextBlocks],
    task: Task,
    paths: StoragePaths,
    seed: int,
) -> tuple[tuple[StudentSource, ...], dict[str, StudentSource]]:
    """Load the models that these students may be built from: the teachers, and each checkpoint once, by its name.

    `text_for` gives the rows for a model: changed copies of them have the mask token of its tokenizer. Raises SpecError
    for a student with more layers than its checkpoint, TeacherError for a checkpoint that cannot be used, and for one
    that no student of this depth can be built from.
    """

    def tokenise_for(model: Pretrained) -> StudentSource:
        return StudentSource(model, tokenise(text_for(model), task, model.tokenizer(), paths))

    students = list(students)
    checkpoints: dict[str, StudentSource] = {}
    sources = tuple(map(tokenise_for, teachers))
    for student in students:
        name = student.checkpoint
        if name is not None and name not in checkpoints:
            folder = find_model(name, student.revision, "student.checkpoint")
            checkpoints[name] = tokenise_for(import_model(folder, task, Head(labels), paths, seed))
    for name, source in checkpoints.items():
        _check_students([student for student in students if student.checkpoint == name], source.model)
    return sources, checkpoints


def check_students_of_teacher(students: Iterable[Student], teacher: Pretrained) -> None:
    """Raise SpecError or TeacherError for a student that cannot be built from this teacher."""
    _check_students([student for student in students if student.checkpoint is None], teacher)


def named_source(source: int | str | None, names: Sequence[str]) -> int | None:
    """The number of the teacher that the setting `student.source` names, among teachers with these names.

    None if it names none. Raises SpecError for a number or a name that no teacher has, or several have.
    """
    if source is None:
        return None
    numbers = [number for number, name in enumerate(names) if source in (number, name)]
    if len(numbers) == 1:
        return numbers[0]
    problem = f"{len(numbers)} teachers have this name" if numbers else "no teacher has this number or name"
    known = ", ".join(f"{number} ({name})" for number, name in enumerate(names)) or "none, the teacher is a file"
    raise SpecError(f"student.source: got {source!r}, but {problem}. Allowed: {known}.")


def refuse_students_of(source: Pretrained, students: Iterable[Student]) -> None:
    """Raise TeacherError if a student is built from the teacher `source`, whose answer depends on padding."""
    if any(student.checkpoint is None and student.is_cut for student in students):
        raise TeacherError(padding_sentence(source.config().model_type))


def _check_students(students: Iterable[Student], source: Pretrained) -> None:
    """Build each student without weights, and only for the errors: it is refused before any slot starts."""
    for student in dict.fromkeys(student.model_copy(update={"dropout": None}) for student in students):
        student.check(source)
