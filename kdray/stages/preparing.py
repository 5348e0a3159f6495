"""The first stage: the rows, and the models that teacher and students start from, before any slot is needed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdray.data.rows import TRAIN
from kdray.data.splits import Splits, load_splits
from kdray.data.tokens import TokenSet, tokenise
from kdray.data.truncation import describe_truncation
from kdray.errors import SpecError, TeacherError
from kdray.evaluation.measuring import SPEEDUP_METRICS
from kdray.models.families import depends_on_padding
from kdray.models.lineage import CheckpointModel, EarlierSweep
from kdray.models.pretrained import Pretrained
from kdray.report.screen import Screen
from kdray.safe_text.escaping import printable
from kdray.search.ledger import Ledger
from kdray.sources.tables import short_list
from kdray.stages.ancestry import data_name, earlier_sweep, measured_rows, sweep_of_checkpoint
from kdray.stages.copying import sweep_text
from kdray.stages.inner_checks import check_inner_terms
from kdray.stages.named_forms import check_forms
from kdray.stages.signals import check_signals
from kdray.stages.warm_start import TrialMaterial, check_unchanged, warm_start
from kdray.storage.files import fingerprint
from kdray.storage.paths import SweepPaths
from kdray.students.sources import (
    WITHOUT_MODEL,
    BySource,
    SourceLoader,
    StudentSource,
    check_tokenizers,
    named_source,
    sources_by_name,
)
from kdray.sweep import COPIES, Sweep
from kdray.teacher.answers import Answers, read_answers
from kdray.teacher.own_rows import own_rows
from kdray.teacher.teacher import display_name, obtain_sources


@dataclass(frozen=True)
class Material:
    """The rows and the models that a sweep starts from."""

    splits: Splits
    teachers: tuple[StudentSource, ...]
    """The models that teach, before any fine-tuning; none if the teacher is a file."""
    checkpoints: Mapping[str, StudentSource]
    """The checkpoints that students are built from, by name."""
    answers: Answers | None = None
    """The answers of a teacher that is a file."""
    named_source: int | None = None
    """The number of the teacher that `student.source` names."""
    earlier: tuple[EarlierSweep | None, ...] = ()
    """The sweeps that made the teachers."""
    made_checkpoints: tuple[CheckpointModel, ...] = ()
    """The checkpoints that earlier sweeps made."""
    own_rows: Splits | None = None
    """The rows that the teachers are fine-tuned on, if they are other ones than those of the students."""
    own_tokens: tuple[TokenSet, ...] = ()
    """These rows in the ids of each teacher's tokenizer."""

    @property
    def possible_sources(self) -> Sequence[int | None]:
        """The numbers of the teachers that students may be built from; only None if the teacher is a file."""
        if self.named_source is not None:
            return [self.named_source]
        return range(len(self.teachers)) if self.teachers else [None]

    def sources(self, teacher: int | None) -> BySource[StudentSource]:
        """The models that students are built from, if the teacher with this number is one of them."""
        return sources_by_name(None if teacher is None else self.teachers[teacher], self.checkpoints)


def prepare(sweep: Sweep, paths: SweepPaths, ledger: Ledger, screen: Screen) -> Material:
    """Load the rows and the models, and check that earlier trials of the sweep learnt from the same ones.

    Raises Refused for data or models that cannot be used, StorageError if earlier trials learnt from something else.
    """
    screen.stage("Data")
    check_forms(sweep, ledger.records())
    _check_file_teacher(sweep)
    source_number = named_source(sweep.student.source, [display_name(model) for model in sweep.teacher.models])
    rows = _read_rows(sweep, screen)
    material, copies = _read_models(sweep, rows, source_number, paths, screen)
    _check_inner_terms(sweep, material, screen)
    _describe_truncation(sweep, material, screen)
    trial_material = TrialMaterial.of(
        sweep,
        rows.splits.text_key,
        _teacher_key(sweep, material),
        _files_of_students(material.teachers, material.checkpoints),
        {"augmentation": copies, "teacher.data": None if rows.own is None else rows.own.key},
    )
    check_unchanged(trial_material, ledger, paths)
    if sweep.search.warm_start is not None:
        screen.note(warm_start(sweep, trial_material, ledger, paths))
    return material


@dataclass(frozen=True)
class _Rows:
    """What is read before any model."""

    splits: Splits
    answers: Answers | None
    """The answers of a teacher that is a file."""
    own: Splits | None
    """The teacher's own rows, if it has any."""


def _read_rows(sweep: Sweep, screen: Screen) -> _Rows:
    splits = load_splits(sweep.data, sweep.task)
    sweep.check_classes(splits)
    _note_all(screen, (*splits.notes, _describe_rows(splits, sweep.most_copies)))
    if sweep.augmentation.ways and not sweep.most_copies:
        screen.note(f"augmentation.ways has no effect, because {COPIES} is 0.")
    answers = None if sweep.teacher.outputs is None else read_answers(sweep.teacher.outputs, sweep.task, splits)
    _note_all(screen, answers.notes if answers else ())
    own = None if sweep.teacher.data is None else own_rows(sweep.teacher.data, sweep.task, splits)
    if own is not None:
        _note_all(screen, (*own.notes, f"{len(own.train):,} rows of its own to fine-tune the teacher on"))
    return _Rows(splits, answers, own)


def _read_models(
    sweep: Sweep, rows: _Rows, source_number: int | None, paths: SweepPaths, screen: Screen
) -> tuple[Material, str | None]:
    """Read the teachers and the checkpoints, and the text in their tokens.

    Also returns the fingerprint of how changed copies are made, None without copies.
    """
    splits, own = rows.splits, rows.own
    models = obtain_sources(sweep.teacher, sweep.task, own or splits, paths, sweep.seed)
    text = sweep_text(sweep, splits, models, paths)
    loader = SourceLoader(tuple(sweep.students), splits.labels, text.read_by, sweep.task, paths, sweep.seed)
    teachers = _load_teachers(sweep, loader, models, source_number)
    checkpoints = loader.checkpoints()
    for teacher in teachers:
        check_tokenizers(teacher, checkpoints)
        _check_live(teacher)
    _note_all(screen, _describe_padding(teachers))
    _note_all(screen, text.notes)
    _note_all(screen, (note for source in (*teachers, *checkpoints.values()) for note in source.notes))
    material = Material(
        splits=splits,
        teachers=teachers,
        checkpoints=checkpoints,
        answers=rows.answers,
        named_source=source_number,
        earlier=tuple(_earlier_sweeps(sweep, splits, teachers, screen)),
        made_checkpoints=tuple(_made_checkpoints(sweep, splits, checkpoints, screen)),
        own_rows=own,
        own_tokens=() if own is None else tuple(tokenise(own, sweep.task, each.tokenizer(), paths) for each in models),
    )
    return material, text.key


def _check_live(teacher: StudentSource) -> None:
    """Raise TeacherError for a teacher that would answer in padded batches, if its answers depend on padding."""
    family = teacher.model.config().model_type
    if teacher.tokens.is_masked_anew(TRAIN) and depends_on_padding(family):
        raise TeacherError(
            f"teacher.model: the answer of a {family} model for a text depends on the padding behind the text, so it "
            "cannot answer while students are trained. Set task.maskings=1 or more: its answers are then stored."
        )


def _describe_padding(teachers: Sequence[StudentSource]) -> Iterator[str]:
    """A note for each teacher whose end token is used as padding, because it has no padding token."""
    for teacher in teachers:
        tokenizer, known = teacher.model.tokenizer(), teacher.model.config().pad_token_id
        if teacher.tokens.layout.top_k is not None and known is None and tokenizer.pad_token == tokenizer.eos_token:
            yield (
                f"The teacher's tokenizer has no padding token, so its end token {printable(tokenizer.eos_token, 60)} "
                "is used as padding. No answer of a language model depends on it."
            )


def _note_all(screen: Screen, notes: Iterable[str]) -> None:
    for note in notes:
        screen.note(note)


def _check_inner_terms(sweep: Sweep, material: Material, screen: Screen) -> None:
    notes: list[str] = []
    for number in material.possible_sources:
        sources = material.sources(number)
        check_signals(sweep, sources)
        notes += check_inner_terms(sweep, sources, several_teachers=len(material.possible_sources) > 1)
    if len(set(notes)) == 1:
        screen.note(notes[0])


def _check_file_teacher(sweep: Sweep) -> None:
    """Raise SpecError or TeacherError for settings that need a teacher that is a model, if it is a file."""
    if sweep.teacher.outputs is None:
        return
    named = (*sweep.search.objectives, *sweep.search.constraints, *sweep.choose.metrics)
    if unknown := [name for name in named if name in SPEEDUP_METRICS]:
        raise SpecError(
            f"{unknown[0]}: the costs of a teacher that is a file are unknown, so nobody knows how much faster a "
            f"student is. Name {SPEEDUP_METRICS[unknown[0]]} or another cost of the student instead."
        )
    if any(student.checkpoint is None for student in sweep.students):
        raise TeacherError(WITHOUT_MODEL)


def _load_teachers(
    sweep: Sweep, loader: SourceLoader, models: Sequence[Pretrained], named: int | None
) -> tuple[StudentSource, ...]:
    """The teachers; `named` is the number of the one that students are built from, None: the best one.

    Raises SpecError or TeacherError for students that cannot be built from a teacher that may be their source.
    """
    teachers = []
    for number, model in enumerate(models):
        try:
            teachers.append(loader.teacher(model, is_source=named in (None, number)))
        except (SpecError, TeacherError) as error:
            if named is not None or len(models) == 1:
                raise
            name = display_name(sweep.teacher.models[number])
            raise type(error)(
                f"{error} That model is teacher {number} ({name}), which may be the best one: name another source with "
                "student.source."
            ) from None
    return tuple(teachers)


def _teacher_key(sweep: Sweep, material: Material) -> str:
    """A fingerprint of what teaches, before any fine-tuning."""
    if material.answers is not None:
        return material.answers.key
    keys = [teacher.model.key for teacher in material.teachers]
    return keys[0] if len(keys) == 1 else fingerprint("mean", keys, sweep.teacher.shares)


def _files_of_students(teachers: Sequence[StudentSource], checkpoints: Mapping[str, StudentSource]) -> dict[str, str]:
    """Fingerprints of what students are built from besides the teacher: the checkpoints, and files with vectors.

    A sweep may get more of them later; only those that it had before must not change.
    """
    names = {name: checkpoint.model.key for name, checkpoint in checkpoints.items()}
    for source in (*teachers, *checkpoints.values()):
        for derived in source.derived.values():
            names |= derived.plan.files if derived.plan else {}
    return names


def _earlier_sweeps(
    sweep: Sweep, splits: Splits, teachers: Sequence[StudentSource], screen: Screen
) -> Iterator[EarlierSweep | None]:
    for model, teacher in zip(sweep.teacher.models, teachers, strict=True):
        earlier, note = earlier_sweep(model, measured_rows(sweep.task, splits, teacher.tokens))
        if note is not None:
            screen.note(note)
        yield earlier


def _made_checkpoints(
    sweep: Sweep, splits: Splits, checkpoints: Mapping[str, StudentSource], screen: Screen
) -> Iterator[CheckpointModel]:
    """The checkpoints that are the chosen students of earlier sweeps."""
    for name, checkpoint in checkpoints.items():
        test_rows = measured_rows(sweep.task, splits, checkpoint.tokens)
        earlier, notes = sweep_of_checkpoint(name, splits, data_name(sweep.data), test_rows)
        _note_all(screen, notes)
        if earlier is not None:
            yield CheckpointModel(name=name, weights=checkpoint.model.key, earlier=earlier)


def _describe_truncation(sweep: Sweep, material: Material, screen: Screen) -> None:
    """Note which texts are truncated, once for each tokenizer of a teacher, or else of a checkpoint.

    A vocabulary of a student is a tokenizer, too: with fewer pieces a text has more tokens.
    """
    readers = material.teachers or tuple(material.checkpoints.values())
    by_tokenizer = {source.tokens.tokenizer_key: ("", source) for source in reversed(readers)}
    for source in readers:
        for vocabulary, derived in source.derived.items():
            by_tokenizer.setdefault(derived.tokens.tokenizer_key, (f"{vocabulary}: ", derived))
    notes = {
        f"{reader}{note}": None
        for reader, source in by_tokenizer.values()
        for note in describe_truncation(source.tokens, material.splits, sweep.task, source.model.tokenizer())
    }
    _note_all(screen, notes)


def _describe_rows(splits: Splits, copies: int) -> str:
    rows = (
        f"{len(splits.train):,} rows to train on, {len(splits.validation):,} to validate, {len(splits.test):,} to test"
    )
    more = "" if splits.unlabelled is None else f"; {len(splits.unlabelled):,} texts without labels"
    if copies:
        more += f"; {copies} changed {'copy' if copies == 1 else 'copies'} of each text to learn from"
    return f"{rows}{more}; labels {short_list(splits.labels)}" if splits.labels else f"{rows}{more}"
