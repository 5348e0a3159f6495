"""The stage that decides where trials get the states of the teacher from, and writes them if they are stored.

Inner terms of the loss compare layers of a student with layers of the fine-tuned teacher that students are built from,
token by token: the teacher must read the token ids of the student.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

from kdray.data.rows import TRAIN
from kdray.data.tokens import TokenSet
from kdray.errors import SpecError, TeacherError
from kdray.losses.inner_term import AttentionTerm, HiddenTerm, InnerTerm
from kdray.losses.inner_terms import INNER_TERMS
from kdray.losses.layer_map import layer_pairs
from kdray.losses.schedule import END
from kdray.losses.states import Needs
from kdray.models.pretrained import Pretrained
from kdray.stages.session import Session
from kdray.students.cut_vocabulary import MostUsedPieces
from kdray.students.layers import transformer_layers
from kdray.students.sources import BySource, StudentSource
from kdray.students.student import Student
from kdray.sweep import Sweep
from kdray.teacher.state_files import obtain_states
from kdray.teacher.transfer import Labelling
from kdray.training.signal import LiveSignal, Signal
from kdray.training.stored_signal import StoredOrLiveSignal, StoredSignal
from kdray.training.trial import TrialInputs

BYTES = 2
"""Bytes of a number in bf16."""


@dataclass(frozen=True)
class Reader:
    """A model that students are built from, and the rows in the ids of its tokenizer."""

    model: Pretrained
    tokens: TokenSet

    @property
    def key(self) -> tuple[str, str]:
        """Fingerprints of both."""
        return self.model.key, self.tokens.key


@dataclass(frozen=True)
class WantedStates:
    """What the trials whose students are built from one source may read of the teacher."""

    teacher: Pretrained
    tokens: TokenSet
    """The rows in the token ids of the students, which the teacher reads."""
    needs: Needs

    def with_needs(self, more: Needs) -> Self:
        """The same with further layers."""
        hidden, attention = self.needs.hidden | more.hidden, self.needs.attention | more.attention
        return replace(self, needs=Needs(hidden, attention))

    @property
    def bytes(self) -> int:
        """The bytes of its hidden states for all texts to train on."""
        tokens = int(self.tokens.all_rows(TRAIN).lengths.sum())
        return tokens * len(self.needs.hidden) * int(self.teacher.config().hidden_size) * BYTES


def give_signals(session: Session, inputs: BySource[TrialInputs], padding: bool) -> BySource[TrialInputs]:
    """The inputs of the trials with the states of the teacher, if the loss of a trial may have inner terms.

    `padding` is that of the teacher's labelling. Raises SpecError for states that cannot be stored as requested,
    TeacherError for a teacher whose states cannot be compared.
    """
    readers = inputs.map(lambda each: Reader(each.source, each.tokens))
    wanted = wanted_states(session.sweep, readers)
    if inputs.teacher is not None and inputs.teacher.tokens.is_masked_anew(TRAIN):
        return _live_everywhere(session, inputs, inputs.teacher.source)
    if not wanted:
        return inputs
    why_live = reason_to_run_the_teacher(session.sweep, list(wanted.values()))
    if why_live is not None and not padding:
        raise TeacherError(
            "distillation: the teacher's states of a text depend on the padding behind it, so they must be stored, but "
            f"{why_live}. Change that, or give another teacher."
        )
    is_stored = why_live is None or stores_for_some(session.sweep, list(wanted.values()))
    if why_live is not None:
        which = "students that compare attention" if is_stored else "students"
        session.screen.note(f"The teacher runs in each slot while {which} are trained, because {why_live}.")
    signals = {
        key: _signal(session, each, padding, is_stored=is_stored, is_live=why_live is not None)
        for key, each in wanted.items()
    }
    return inputs.map(lambda each: replace(each, signal=signals.get(Reader(each.source, each.tokens).key)))


def _live_everywhere(session: Session, inputs: BySource[TrialInputs], teacher: Pretrained) -> BySource[TrialInputs]:
    """The inputs of trials whose rows have other masks in each epoch: no answers to them can be stored."""
    session.screen.note(
        "The teacher runs in each slot while students are trained, because the texts are masked anew in each epoch. "
        "With task.maskings=N its answers to N maskings of each text are stored instead."
    )
    live = LiveSignal(teacher, session.sweep.transfer.precision)
    return inputs.map(lambda each: replace(each, signal=live))


def check_signals(sweep: Sweep, sources: BySource[StudentSource]) -> None:
    """Raise the errors of `give_signals` that do not depend on the fine-tuning, before any slot starts."""
    wanted = wanted_states(sweep, sources.map(lambda each: Reader(each.model, each.tokens)))
    if wanted:
        reason_to_run_the_teacher(sweep, list(wanted.values()))


def wanted_states(sweep: Sweep, readers: BySource[Reader]) -> dict[tuple[str, str], WantedStates]:
    """The states of the teacher that a trial may read, by the key of its student's source; empty without inner terms.

    Raises SpecError for students that cannot be compared with the teacher, TeacherError for a teacher without layers.
    """
    terms = possible_terms(sweep)
    wanted: dict[tuple[str, str], WantedStates] = {}
    for student in sweep.students if terms else ():
        reader = readers.of(student)
        teacher = _teacher_of(student, reader, readers.teacher, next(iter(terms)))
        states = wanted.setdefault(reader.key, WantedStates(teacher, reader.tokens, Needs()))
        wanted[reader.key] = states.with_needs(_needs(sweep, student, reader, teacher, terms))
    return wanted


def possible_terms(sweep: Sweep) -> dict[str, type[InnerTerm]]:
    """The inner terms that a trial of this sweep may have, by name."""
    return {
        name: kind
        for name, kind in INNER_TERMS.items()
        if any(value for each in (name, f"{name}{END}") for value in sweep.possible_values(f"distillation.{each}"))
    }


def reason_to_run_the_teacher(sweep: Sweep, wanted: Sequence[WantedStates]) -> str | None:
    """Why the teacher runs in the slots; None: its states are stored.

    Raises SpecError if transfer.signal=stored and they cannot be stored.
    """
    transfer = sweep.transfer
    if transfer.signal == "live":
        return "transfer.signal is live"
    reason = _reason_against_files(sweep, wanted)
    if reason is not None and transfer.signal == "stored":
        raise SpecError(f"transfer.signal: got stored, but {reason}. Set it to auto or live, or change that.")
    return reason


def stores_for_some(sweep: Sweep, wanted: Sequence[WantedStates]) -> bool:
    """Whether hidden states are stored although the teacher runs in the slots: for trials without attention."""
    attention = _attention_weights(sweep)
    # The weight at the end of a schedule is None where there is no schedule.
    settings = [name for weight in attention for name in (weight, f"{weight}{END}")]
    return (
        sweep.transfer.signal == "auto"
        and bool(attention)
        and all(not all(sweep.possible_values(name)) for name in settings)
        and any(each.needs.hidden for each in wanted)
        and _reason_against_size(sweep, wanted) is None
    )


def _attention_weights(sweep: Sweep) -> list[str]:
    """The weights of terms on attention that may be above 0 in a trial."""
    return [f"distillation.{name}" for name, kind in possible_terms(sweep).items() if issubclass(kind, AttentionTerm)]


def _reason_against_files(sweep: Sweep, wanted: Sequence[WantedStates]) -> str | None:
    if weights := _attention_weights(sweep):
        names = ", ".join(weights)
        return f"{names} may be above 0, and attention is never stored: it grows with the square of a text's length"
    return _reason_against_size(sweep, wanted)


def _reason_against_size(sweep: Sweep, wanted: Sequence[WantedStates]) -> str | None:
    size, budget = sum(each.bytes for each in wanted), sweep.transfer.budget_gb
    if size <= budget * 1e9:
        return None
    layers = _list(frozenset[int]().union(*(each.needs.hidden for each in wanted)))
    return f"its hidden states ({layers}) take {size / 1e9:,.4g} GB, and transfer.budget_gb is {budget:g}"


def _signal(session: Session, wanted: WantedStates, padding: bool, *, is_stored: bool, is_live: bool) -> Signal:
    transfer, screen = session.sweep.transfer, session.screen
    live = LiveSignal(wanted.teacher, transfer.precision)
    if not is_stored or not wanted.needs.hidden:
        return live
    screen.note(
        f"The teacher's hidden states ({_list(wanted.needs.hidden)}) are stored for all texts to train on: "
        f"{wanted.bytes / 1e9:,.4g} GB, and transfer.budget_gb is {transfer.budget_gb:g}."
    )
    states = obtain_states(
        Labelling(transfer, wanted.teacher, wanted.tokens, padding),
        sorted(wanted.needs.hidden),
        session.paths,
        session.slots,
        lambda done, shards: screen.progress("shards of hidden states", done, shards),
        screen.note,
    )
    stored = StoredSignal(states, _depth(wanted.teacher))
    return StoredOrLiveSignal(stored, live) if is_live else stored


def _teacher_of(student: Student, reader: Reader, teacher: Reader | None, term: str) -> Pretrained:
    """The model whose states a student of this source is compared with. `term` is the setting for messages."""
    if teacher is None:
        raise SpecError(
            f"distillation.{term}: it compares layers, and the teacher is a file (teacher.outputs), which has only "
            "outputs. Leave it out, or give a model as the teacher."
        )
    if reader.tokens.tokenizer_key == teacher.tokens.tokenizer_key:
        found = teacher.model
    elif student.checkpoint is None and isinstance(student.own_vocabulary, MostUsedPieces):
        found = reader.model  # the teacher itself, with fewer pieces
    else:
        words = "its own vocabulary" if student.own_vocabulary else f"the tokens of {student.checkpoint}"
        raise SpecError(
            f"distillation.{term}: it compares student and teacher token by token, but a {student.family} student with "
            f"{words} has other tokens than the teacher. Leave it out, or build students with the teacher's tokenizer."
        )
    if not _depth(found):
        raise TeacherError(
            f"distillation.{term}: a {found.config().model_type} model has no layers with a state of each token, so "
            "nothing in it can be compared with a student. Leave it out, or give another teacher."
        )
    return found


def _needs(
    sweep: Sweep, student: Student, reader: Reader, teacher: Pretrained, terms: dict[str, type[InnerTerm]]
) -> Needs:
    """The layers of the teacher that trials with this student may read."""
    hidden = [kind for kind in terms.values() if issubclass(kind, HiddenTerm)]
    of_layers = [name for name, kind in terms.items() if not (issubclass(kind, HiddenTerm) and kind.of_embeddings)]
    embeddings = frozenset((0,)) if any(kind.of_embeddings for kind in hidden) else frozenset()
    if not of_layers:
        return Needs(embeddings)
    depth = _student_depth(student.shape, reader.model)
    if not depth:
        raise SpecError(
            f"distillation.{of_layers[0]}: a {student.family} student has no layers to compare. Leave it out, or leave "
            f"out the family {student.family}."
        )
    layers = frozenset(
        pair[1]
        for layer_map in sweep.possible_values("distillation.layer_map")
        for pair in layer_pairs(str(layer_map), depth, _depth(teacher))
    )
    has_hidden = any(not kind.of_embeddings for kind in hidden)
    has_attention = any(issubclass(kind, AttentionTerm) for kind in terms.values())
    return Needs(embeddings | layers if has_hidden else embeddings, layers if has_attention else frozenset())


@lru_cache(maxsize=64)
def _depth(model: Pretrained) -> int:
    """The number of layers with a state of each token."""
    # Cached, because a sweep asks for each of its students, and an outline takes 0.1 s.
    return len(transformer_layers(model.outline()))


@lru_cache(maxsize=512)
def _student_depth(student: Student, source: Pretrained) -> int:
    """The number of layers of a student of this source that can be compared."""
    return len(student.inner_layers(student.build_outline(source.outline())))


def _list(layers: Iterable[int]) -> str:
    numbers = sorted(layers)
    return f"{'layer' if len(numbers) == 1 else 'layers'} {', '.join(map(str, numbers))}"
