"""Schemes of tags: how the tags of words say where a span begins and ends.

A tag such as B-person has a prefix, a dash and the type of the span; O is outside of every span. Tags without such
prefixes (parts of speech) are plain: each word has its own, and there are no spans.
Shapes: N sentences, A words, C tags, T types.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

OUTSIDE = "O"
OUT, BEGIN, INSIDE, END, SINGLE = range(5)
"""What a tag says: the word is in no span, or it is the first, an inner, the last, or the only word of a span."""

_SHAPE = re.compile(r"([A-Z])-(.+)", re.DOTALL)
"""A prefix and a type. Only the first dash divides them: B-creative-work has the type creative-work."""


@dataclass(frozen=True)
class Scheme:
    """How the tags of a span are written."""

    name: str
    meanings: Mapping[str, int] = field(hash=False)
    """Prefix -> what it says, in the order in which the tags of a type are listed; empty for plain tags."""
    must_continue: tuple[int, ...] = ()
    """A tag that says this stands directly behind the first or an inner word of a span of its type."""
    must_be_continued: tuple[int, ...] = ()
    """A tag that says this stands directly before an inner or the last word of a span of its type."""

    @property
    def has_spans(self) -> bool:
        """Whether the tags make spans; False for plain tags."""
        return bool(self.meanings)

    def split(self, tag: str) -> tuple[int, str | None]:
        """What the tag says, and the type of its span; None as type for O.

        Raises ValueError with what is wrong, for a tag that is not in the scheme.
        """
        if tag == OUTSIDE or not self.has_spans:
            return OUT, None
        match = _SHAPE.fullmatch(tag)
        if match and match[1] in self.meanings:
            return self.meanings[match[1]], match[2]
        raise ValueError(self._describe(tag, match))

    def complete(self, types: Iterable[str]) -> tuple[str, ...]:
        """All tags for these types: O, then those of each type in alphabetical order; of plain tags themselves, sorted.

        Tags that the training rows lack are there, too: with B-product in train, I-product in test has a number.
        """
        if not self.has_spans:
            return tuple(sorted(set(types)))
        return (OUTSIDE, *(f"{prefix}-{each}" for each in sorted(set(types)) for prefix in self.meanings))

    def _describe(self, tag: str, match: re.Match[str] | None) -> str:
        prefixes = ", ".join(f"{prefix}-" for prefix in self.meanings)
        allowed = f"the other tags are in the scheme {self.name}: {OUTSIDE}, or {prefixes} and a type"
        if match is None and tag.rstrip("-") in self.meanings:
            return f"tag {tag!r} has no type; {allowed}"
        if match is None:
            return f"tag {tag!r} has no prefix; {allowed}"
        return f"tag {tag!r} has the prefix {match[1]}-; {allowed}"


BIO = Scheme("BIO", {"B": BEGIN, "I": INSIDE}, must_continue=(INSIDE,))
"""B begins each span (also called IOB2)."""
IOB1 = Scheme("IOB1", {"B": BEGIN, "I": INSIDE}, must_continue=(BEGIN,))
"""I begins a span; B only one that directly follows a span of the same type."""
BIOES = Scheme(
    "BIOES",
    {"B": BEGIN, "I": INSIDE, "E": END, "S": SINGLE},
    must_continue=(INSIDE, END),
    must_be_continued=(BEGIN, INSIDE),
)
BILOU = Scheme(
    "BILOU",
    {"B": BEGIN, "I": INSIDE, "L": END, "U": SINGLE},
    must_continue=(INSIDE, END),
    must_be_continued=(BEGIN, INSIDE),
)
PLAIN = Scheme("plain", {})
"""Tags without spans, such as parts of speech."""
SCHEMES = {scheme.name: scheme for scheme in (BIO, IOB1, BIOES, BILOU, PLAIN)}


@dataclass(frozen=True)
class TagSet:
    """Numbered tags of one scheme. The number of a tag is its index in `names`, in any order."""

    scheme: Scheme
    names: tuple[str, ...]
    """All tags. Constructing raises ValueError with what is wrong, for a tag that is not in the scheme."""

    def __post_init__(self) -> None:
        for name in self.names:
            self.scheme.split(name)

    @cached_property
    def types(self) -> tuple[str, ...]:
        """The types of spans, sorted; plain tags themselves, in the order of their numbers."""
        if not self.scheme.has_spans:
            return self.names
        return tuple(sorted({each for _, each in self._parts if each is not None}))

    @cached_property
    def tag_meanings(self) -> np.ndarray:
        """What each tag says (C, int8): OUT, BEGIN, INSIDE, END or SINGLE."""
        return np.array([meaning for meaning, _ in self._parts], np.int8)

    @cached_property
    def tag_types(self) -> np.ndarray:
        """The number in `types` of each tag's type (C, int64); -1 for O. The type of a plain tag is the tag itself."""
        if not self.scheme.has_spans:
            return np.arange(len(self.names))
        numbers = {each: number for number, each in enumerate(self.types)}
        return np.array([-1 if each is None else numbers[each] for _, each in self._parts], np.int64)

    @cached_property
    def _parts(self) -> list[tuple[int, str | None]]:
        return [self.scheme.split(name) for name in self.names]


def recognise(names: Sequence[str], tags_A: np.ndarray, starts_N1: np.ndarray) -> Scheme:
    """The scheme of the tags `names`, from themselves and from their sequences in the training rows.

    `tags_A` has the number of each word's tag in `names`, `starts_N1` the first word of each sentence and the number of
    words. Only the sequences tell BIO and IOB1 apart: it is the one that fewer words contradict, BIO if both are equal.
    A name may be outside of the result; `wrong_tags` finds such names. Raises ValueError, with the rest of a sentence,
    for tags that mark only where spans end.
    """
    known = {prefix for scheme in SCHEMES.values() for prefix in scheme.meanings}
    prefixes = Counter(match[1] for name in names if (match := _SHAPE.fullmatch(name)) and match[1] in known)
    # Parts of speech may have a dash (the French V-P), and tags of spans may be misspelt: O, or the majority, decides.
    if not prefixes or (OUTSIDE not in names and prefixes.total() * 2 <= len(names)):
        return PLAIN
    # The scheme that explains most names; of equal ones the one with the fewest prefixes, which is listed first.
    best = max((BIO, BIOES, BILOU), key=lambda scheme: sum(prefixes[prefix] for prefix in scheme.meanings))
    if "B" not in prefixes and any(prefixes[prefix] for prefix, meaning in best.meanings.items() if meaning == END):
        raise ValueError("the tags mark where spans end, but not where they begin (IOE); write them as BIO")
    return _bio_or_iob1(names, tags_A, starts_N1) if best is BIO else best


def wrong_tags(scheme: Scheme, names: Iterable[str]) -> dict[str, str]:
    """Tag -> what is wrong with it, for the tags that are not in the scheme; the rest of a sentence."""
    wrong = {}
    for name in names:
        try:
            scheme.split(name)
        except ValueError as error:
            wrong[name] = str(error)
    return wrong


def _bio_or_iob1(names: Sequence[str], tags_A: np.ndarray, starts_N1: np.ndarray) -> Scheme:
    """The scheme of the two with fewer words that it does not allow at their place."""
    parts = [match.groups() if (match := _SHAPE.fullmatch(name)) else (OUTSIDE, name) for name in names]
    prefixes_C = np.array([prefix for prefix, _ in parts], "U1")
    tag_types = np.unique([each for _, each in parts], return_inverse=True)[1]
    # Both schemes agree on every word but the first one of a span of its type; there BIO has B and IOB1 has I.
    is_first_A = np.ones(len(tags_A), bool)
    in_span_C = prefixes_C != OUTSIDE
    previous_A, current_A = tags_A[:-1], tags_A[1:]
    is_first_A[1:] = ~(in_span_C[previous_A] & (tag_types[previous_A] == tag_types[current_A]))
    is_first_A[starts_N1[:-1][starts_N1[:-1] < len(tags_A)]] = True
    prefixes_A = prefixes_C[tags_A[is_first_A]]
    return IOB1 if (prefixes_A == "I").sum() > (prefixes_A == "B").sum() else BIO
