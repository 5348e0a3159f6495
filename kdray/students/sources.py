"""The models that students are built from, the teacher or smaller checkpoints, and the rows in the ids of each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from kdray.data.tokens import TextBlocks, TokenSet, tokenise
from kdray.errors import SpecError, TeacherError
from kdray.models.pretrained import Head, Pretrained, find_model, import_model
from kdray.storage.paths import StoragePaths
from kdray.students.student import Student
from kdray.students.transformer import padding_sentence
from kdray.students.vocabularies import Vocabulary, VocabularyPlan
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
    derived: Mapping[tuple[str | None, Vocabulary], T] = field(default_factory=dict)
    """The checkpoint, None for the teacher, and a vocabulary -> the value for the source that is derived from it."""

    def of(self, student: Student) -> T:
        """The value for the model that this student is built from."""
        vocabulary = student.own_vocabulary
        if vocabulary is not None and (student.checkpoint is not None or self.teacher is not None):
            return self.derived[student.checkpoint, vocabulary]
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
        return BySource(
            teacher,
            {name: change(value) for name, value in self.checkpoints.items()},
            {name: change(value) for name, value in self.derived.items()},
        )


@dataclass(frozen=True)
class StudentSource:
    """A model that students are built from, and the rows in the ids of this model's tokenizer."""

    model: Pretrained
    tokens: TokenSet
    plan: VocabularyPlan | None = None
    """How it was derived from the teacher or the checkpoint; None: it is that model itself."""
    derived: Mapping[Vocabulary, "StudentSource"] = field(default_factory=dict)
    """The sources that are derived from it, by their vocabulary."""

    def read_by(self, student: Student) -> "StudentSource":
        """This source, or the one that is derived from it with the vocabulary of the student."""
        return self if student.own_vocabulary is None else self.derived[student.own_vocabulary]

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence about each vocabulary that is derived from it."""
        return tuple(each.plan.describe(self.tokens, each.tokens) for each in self.derived.values() if each.plan)


def sources_by_name(teacher: StudentSource | None, checkpoints: Mapping[str, StudentSource]) -> BySource[StudentSource]:
    """The models that students are built from, with those that are derived from them."""
    named: list[tuple[str | None, StudentSource]] = [*checkpoints.items()]
    if teacher is not None:
        named.append((None, teacher))
    derived = {(name, words): value for name, source in named for words, value in source.derived.items()}
    return BySource(teacher, checkpoints, derived)


def with_trained_teacher(
    sources: BySource[StudentSource], teacher: Pretrained, paths: StoragePaths
) -> BySource[StudentSource]:
    """These sources with the fine-tuned teacher in place of the teacher; those derived from it are derived again."""
    derived = {
        (name, words): replace(source, model=source.plan.derive(teacher, paths))
        if name is None and source.plan
        else source
        for (name, words), source in sources.derived.items()
    }
    trained = None if sources.teacher is None else replace(sources.teacher, model=teacher)
    return BySource(trained, sources.checkpoints, derived)


@dataclass(frozen=True)
class SourceLoader:
    """Loads the models that the students of a sweep may be built from, and checks that they can be."""

    students: tuple[Student, ...]
    labels: tuple[str, ...]
    text_for: Callable[[Pretrained], TextBlocks]
    """Gives the rows for a model: changed copies of them have the mask token of its tokenizer."""
    task: Task
    paths: StoragePaths
    seed: int

    def teacher(self, model: Pretrained, is_source: bool) -> StudentSource:
        """A teacher, with what is derived from it if it `is_source`: students may be built from it.

        Raises SpecError or TeacherError for a student that cannot be built from it.
        """
        source = self._tokenised(model, model)
        if not is_source:
            return source
        return self._checked(source, [student for student in self.students if student.checkpoint is None])

    def checkpoints(self) -> dict[str, StudentSource]:
        """Each checkpoint that a student names, by its name.

        Raises SpecError for a student with more layers than its checkpoint, TeacherError for a checkpoint that cannot
        be used, and for one that a student cannot be built from.
        """
        of_name: dict[str, list[Student]] = {}
        for student in self.students:
            if student.checkpoint is not None:
                of_name.setdefault(student.checkpoint, []).append(student)
        loaded = {}
        for name, students in of_name.items():
            folder = find_model(name, students[0].revision, "student.checkpoint")
            model = import_model(folder, self.task, Head(self.labels), self.paths, self.seed)
            loaded[name] = self._tokenised(model, model)
        return {name: self._checked(loaded[name], students) for name, students in of_name.items()}

    def _checked(self, source: StudentSource, students: Iterable[Student]) -> StudentSource:
        """The source with those that are derived from it; each student is built from its own one, without weights.

        Only for the errors: a student that cannot be built is refused before any slot starts.
        """
        students = list(dict.fromkeys(student.model_copy(update={"dropout": None}) for student in students))
        vocabularies = dict.fromkeys(student.own_vocabulary for student in students)
        source = replace(source, derived={each: self._derive(source, each) for each in vocabularies if each})
        for student in students:
            student.check(source.read_by(student).model)
        return source

    def _derive(self, source: StudentSource, vocabulary: Vocabulary) -> StudentSource:
        # The rows are those for the source: a derived source has its special tokens.
        plan = vocabulary.plan(source.model, source.tokens, self.text_for(source.model))
        return replace(self._tokenised(plan.derive(source.model, self.paths), source.model), plan=plan)

    def _tokenised(self, model: Pretrained, reader: Pretrained) -> StudentSource:
        """The model with the rows in the ids of its tokenizer; the rows are those for the model `reader`."""
        return StudentSource(model, tokenise(self.text_for(reader), self.task, model.tokenizer(), self.paths))


def check_tokenizers(teacher: StudentSource, checkpoints: Mapping[str, StudentSource]) -> None:
    """Raise TeacherError for a checkpoint with other tokens than the teacher, if the answers are tokens of a text."""
    if teacher.tokens.layout.top_k is None:
        return
    for name, checkpoint in checkpoints.items():
        if checkpoint.tokens.tokenizer_key != teacher.tokens.tokenizer_key:
            raise TeacherError(
                f"student.checkpoint {name}: its tokenizer is not that of the teacher. The teacher's answers are "
                "tokens of its own vocabulary, which say nothing about other tokens, and perplexities of two "
                "tokenizers cannot be compared. Give a checkpoint with the teacher's tokenizer; or train it with a "
                "teacher that has its own tokenizer, and distil it from this family in a sweep with labels, where "
                "tokenizers may differ."
            )


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
