"""Checks, before anything starts, that what the inner terms of a sweep's loss compare can be recorded and compared.

`signals` checks which teacher a student is compared with, their tokens, and the layer maps; this module checks what the
layers give: states of each token, attention, and widths that relation heads divide. It runs each model once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from kdray.errors import SpecError, TeacherError
from kdray.losses.attention_relations import Relations, check_relation_heads
from kdray.losses.inner_term import AttentionTerm, HiddenTerm, InnerTerm
from kdray.losses.layer_map import Pairs, layer_pairs
from kdray.models.families import depends_on_padding
from kdray.models.pretrained import Pretrained
from kdray.stages.signals import Reader, WantedStates, possible_terms, reason_to_run_the_teacher, wanted_states
from kdray.students.recordable import Recordable
from kdray.students.sources import BySource, StudentSource
from kdray.students.student import Student
from kdray.sweep import Sweep

RECORDED = ("BERT", "RoBERTa", "DistilBERT", "ELECTRA", "ALBERT", "ModernBERT")
"""Families whose attention is recorded, for messages."""


@dataclass(frozen=True)
class Comparison:
    """A student of a sweep, the model that it is built from, and the teacher that inner terms compare it with."""

    student: Student
    source: Pretrained
    teacher: Pretrained


def check_inner_terms(sweep: Sweep, sources: BySource[StudentSource], several_teachers: bool) -> list[str]:
    """Check what the inner terms compare, if a trial may have one. Returns a note for the screen, or none.

    `several_teachers`: students may be compared with any of several teachers, the one that teaches best.
    Raises SpecError for students that cannot be compared with the teacher, TeacherError for a model whose states cannot
    be recorded.
    """
    terms = possible_terms(sweep)
    if not terms:
        return []
    readers = sources.map(lambda each: Reader(each.model, each.tokens))
    wanted = wanted_states(sweep, readers)
    _check_padding(sweep, wanted.values(), next(iter(terms)))
    pairs = [
        Comparison(student, reader.model, wanted[reader.key].teacher)
        for student, reader in ((student, readers.of(student)) for student in sweep.students)
    ]
    for pair in pairs:
        _check_single_teacher(pair.student, several_teachers, next(iter(terms)))
        _check_hidden(pair, terms)
        _check_attention(sweep, pair, terms)
    return _describe_pairs(sweep, pairs, terms)


def _check_padding(sweep: Sweep, wanted: Iterable[WantedStates], term: str) -> None:
    """Raise TeacherError for a teacher whose states depend on padding, if they are computed with it."""
    wanted = list(wanted)
    families = [each.teacher.config().model_type for each in wanted]
    reason = reason_to_run_the_teacher(sweep, wanted)
    for family in families:
        if depends_on_padding(family) and reason is not None:
            raise TeacherError(
                f"distillation.{term}: the states of this {family} model for a text depend on the padding behind it, "
                f"so they must be stored, but {reason}. Change that, leave the inner terms out, or give another "
                "teacher."
            )


def _check_single_teacher(student: Student, several_teachers: bool, term: str) -> None:
    if several_teachers and student.checkpoint is not None:
        raise SpecError(
            f"distillation.{term}: it compares layers with those of one teacher, but several teach, and the students "
            f"are built from {student.checkpoint}. Say which teacher with student.source, its number or its name."
        )


def _check_hidden(pair: Comparison, terms: Mapping[str, type[InnerTerm]]) -> None:
    """Raise TeacherError for layers without a state of each token, SpecError for first tokens that say nothing."""
    hidden = {name: kind for name, kind in terms.items() if issubclass(kind, HiddenTerm)}
    for model in _recorded_models(pair) if hidden else ():
        if not _recordable(model).hidden:
            raise TeacherError(
                f"distillation.{next(iter(hidden))}: the layers of a {_family(model)} model do not give one state for "
                "each token, so nothing in it can be compared. Leave it out, or take another model, such as "
                f"{_list(RECORDED)}."
            )
    for name, kind in hidden.items():
        for model in _recorded_models(pair) if kind.of_first_token else ():
            if _recordable(model).is_causal:
                raise SpecError(
                    f"distillation.{name}: in a {_family(model)} model each token sees the tokens before it alone, so "
                    "the state of the first one says nothing about the text. Leave it out; hidden_mse and "
                    "hidden_cosine compare all tokens."
                )


def _check_attention(sweep: Sweep, pair: Comparison, terms: Mapping[str, type[InnerTerm]]) -> None:
    """Raise SpecError for students without attention, TeacherError for a model whose attention cannot be recorded."""
    names = [name for name, kind in terms.items() if issubclass(kind, AttentionTerm)]
    if not names:
        return
    family = pair.student.family
    if not pair.student.has_attention:
        raise SpecError(
            f"distillation.{names[0]}: it compares attention, but a {family} student has none. Leave it out, or leave "
            f"out the family {family}; hidden_mse and hidden_cosine compare the layers of any family that has some."
        )
    for model in _recorded_models(pair):
        if not _recordable(model).attention:
            raise TeacherError(
                f"distillation.{names[0]}: the attention of a {_family(model)} model cannot be recorded: transformers "
                "computes it by code of this family, or with more than queries and keys. Leave it out, or take a model "
                f"of another family, such as {_list(RECORDED)}."
            )
    for kind in terms.values():
        if issubclass(kind, Relations):
            for heads in sweep.possible_values("distillation.relation_heads"):
                _check_relation_heads(heads, pair, kind)


def _check_relation_heads(relation_heads: int | None, pair: Comparison, kind: type[Relations]) -> None:
    teacher, source = _recordable(pair.teacher), _recordable(pair.source)
    heads = pair.student.architecture(pair.source).get("heads", source.heads)
    widths = {f"teacher's {what}": teacher.attention[what] for what in kind.compared}
    # The size of a head is that of the source, see `students.widths`.
    widths |= {f"student's {what}": source.attention[what] // source.heads * heads for what in kind.compared}
    check_relation_heads(relation_heads, teacher.heads, widths)


def _describe_pairs(sweep: Sweep, pairs: list[Comparison], terms: Mapping[str, type[InnerTerm]]) -> list[str]:
    """Which layers learn from which, if that is the same in all trials."""
    if all(issubclass(kind, HiddenTerm) and kind.of_embeddings for kind in terms.values()):
        return []
    maps = sweep.possible_values("distillation.layer_map")
    found: set[Pairs] = set()
    for student, source, teacher in {(pair.student.shape, pair.source, pair.teacher) for pair in pairs}:
        depth = len(student.inner_layers(student.build_outline(source.outline())))
        found |= {layer_pairs(each, depth, _recordable(teacher).layers) for each in maps}
        if len(found) > 1:
            return []
    listed = ", ".join(f"{student} from {teacher}" for student, teacher in next(iter(found)))
    return [f"Layers of a student and of the teacher that they learn from: {listed}."]


def _recorded_models(pair: Comparison) -> list[Pretrained]:
    """The Transformers whose states are recorded: a student that is cut from one gives the states that it gives."""
    models = [pair.teacher, pair.source] if pair.student.is_cut else [pair.teacher]
    return list({model.key: model for model in models}.values())


@lru_cache(maxsize=32)
def _recordable(model: Pretrained) -> Recordable:
    # Cached, because a sweep asks for each of its students, and it takes as long as loading the model.
    return Recordable.of(model.model())


def _family(model: Pretrained) -> str:
    return str(model.config().model_type)


def _list(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
