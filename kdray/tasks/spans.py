"""Spans of tagged words: read from the tags of many sentences at once, as seqeval reads them.

seqeval (https://github.com/chakki-works/seqeval) reads tags in two modes. By default, as CoNLL's conlleval, every word
that is not outside belongs to a span: where the tags contradict each other, a new span begins. In strict mode, only
spans that are written as the scheme demands count.
Shapes: N sentences, A words, M spans.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kdray.tasks.tag_schemes import BEGIN, BILOU, BIO, BIOES, END, INSIDE, IOB1, OUT, PLAIN, SINGLE, Scheme, TagSet


@dataclass(frozen=True)
class Spans:
    """The spans of sentences, in the order of their words."""

    sentences_M: np.ndarray
    """The number of the sentence."""
    types_M: np.ndarray
    """The number of the type, in the types of the tag set."""
    first_M: np.ndarray
    """The first word of the span, counted over all sentences."""
    ends_M: np.ndarray
    """The word after the last one of the span, counted over all sentences."""

    def __len__(self) -> int:
        return len(self.first_M)


@dataclass(frozen=True)
class Impossible:
    """Tags at places where their scheme does not allow them, such as I-person directly behind O in BIO."""

    sentences: int
    """The number of sentences with such a tag."""
    sentence: int
    """The first one of them."""
    word: int
    """The first such word in this sentence, from 0."""
    what: str
    """The tag and where it stands, for a message: "I-person directly behind O"."""

    def describe(self, scheme: Scheme, sentences: int) -> str:
        """A sentence for a note about a table with this number of sentences, whose rows are counted from 1."""
        place = f"row {self.sentence + 1}, word {self.word + 1}"
        return (
            f"{self.sentences} of {sentences} sentences have a tag that {scheme.name} does not allow at its place, "
            f"such as {self.what} ({place}). They are read as by seqeval's default mode: where tags contradict each "
            f"other, a new span begins."
        )


@dataclass(frozen=True)
class _Words:
    """What the tags of all words say."""

    meanings_A: np.ndarray
    types_A: np.ndarray
    is_start_A: np.ndarray
    """Whether the word is the first one of its sentence."""

    @classmethod
    def of(cls, tags: TagSet, tags_A: np.ndarray, starts_N1: np.ndarray) -> "_Words":
        is_start_A = np.zeros(len(tags_A), bool)
        # A sentence without words starts where the next one does; at the end there may be no word.
        is_start_A[starts_N1[starts_N1 < len(tags_A)]] = True
        return cls(tags.tag_meanings[tags_A], tags.tag_types[tags_A], is_start_A)

    @cached_property
    def follows(self) -> np.ndarray:
        """Whether each word (A) stands directly behind the first or an inner word of a span of its type."""
        is_open_A = np.isin(self.meanings_A, (BEGIN, INSIDE))
        return ~self.is_start_A & np.roll(is_open_A, 1) & (np.roll(self.types_A, 1) == self.types_A)

    @cached_property
    def continues(self) -> np.ndarray:
        """Whether each word (A) continues the span of the word before it."""
        return np.isin(self.meanings_A, (INSIDE, END)) & self.follows


def read_spans(tags: TagSet, tags_A: np.ndarray, starts_N1: np.ndarray, strict: bool = False) -> Spans:
    """The spans of tagged sentences, as seqeval reads them by default or in its strict mode; plain tags have none.

    `tags_A` has the number of each word's tag, `starts_N1` the first word of each sentence and the number of words.
    By default, L- and U- of BILOU are read as E- and S- of BIOES: seqeval itself warns there that it knows neither of
    them, and reads two spans of one word each as one span.
    """
    words = _Words.of(tags, tags_A, starts_N1)
    first_M = np.flatnonzero((words.meanings_A != OUT) & ~words.continues)
    # A span ends where the next one begins, and where a word is outside.
    breaks = np.append(np.flatnonzero(~words.continues), len(tags_A))
    ends_M = breaks[np.searchsorted(breaks, first_M, side="right")]
    if strict:
        first_M, ends_M = _STRICT[tags.scheme.name](words, first_M, ends_M)
    sentences_M = np.searchsorted(starts_N1, first_M, side="right") - 1
    return Spans(sentences_M=sentences_M, types_M=words.types_A[first_M], first_M=first_M, ends_M=ends_M)


def find_impossible(tags: TagSet, tags_A: np.ndarray, starts_N1: np.ndarray) -> Impossible | None:
    """How many sentences have a tag that its scheme does not allow at that place, and the first; None without any."""
    every = _Words.of(tags, tags_A, starts_N1)
    has_no_start_A = np.isin(every.meanings_A, tags.scheme.must_continue) & ~every.follows
    # The first word continues nothing, so what `roll` carries from there to the last word is right, too.
    has_no_end_A = np.isin(every.meanings_A, tags.scheme.must_be_continued) & ~np.roll(every.continues, -1)
    places = np.flatnonzero(has_no_start_A | has_no_end_A)
    if not len(places):
        return None
    sentences = np.searchsorted(starts_N1, places, side="right") - 1
    sentence = int(sentences[0])
    start, end = int(starts_N1[sentence]), int(starts_N1[sentence + 1])
    words = [tags.names[tag] for tag in tags_A[start:end]]
    word = int(places[0]) - start
    describe = _describe_start if has_no_start_A[places[0]] else _describe_end
    return Impossible(len(np.unique(sentences)), sentence=sentence, word=word, what=describe(words, word))


def _describe_start(words: Sequence[str], word: int) -> str:
    return f"{words[word]} " + (f"directly behind {words[word - 1]}" if word else "at the beginning of a sentence")


def _describe_end(words: Sequence[str], word: int) -> str:
    is_last = word + 1 == len(words)
    return f"{words[word]} " + ("at the end of a sentence" if is_last else f"directly before {words[word + 1]}")


# The spans of the strict mode are some of those that are read by default ----------------------------------------------


def _strict_bio(words: _Words, first_M: np.ndarray, ends_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    is_strict_M = words.meanings_A[first_M] == BEGIN
    return first_M[is_strict_M], ends_M[is_strict_M]


def _strict_bioes(words: _Words, first_M: np.ndarray, ends_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    meanings_A = words.meanings_A
    is_strict_M = np.isin(meanings_A[first_M], (BEGIN, SINGLE)) & np.isin(meanings_A[ends_M - 1], (END, SINGLE))
    return first_M[is_strict_M], ends_M[is_strict_M]


def _strict_iob1(words: _Words, first_M: np.ndarray, ends_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """B begins a span only directly behind one of the same type; elsewhere the span begins with the I behind it."""
    is_wrong_B_M = (words.meanings_A[first_M] == BEGIN) & ~words.follows[first_M]
    first_M = first_M + is_wrong_B_M
    # seqeval finds no end of a span between two B of different types.
    ends_B_M = words.meanings_A[ends_M - 1] == BEGIN
    next_M = np.minimum(ends_M, len(words.meanings_A) - 1)
    before_B_M = (words.meanings_A[next_M] == BEGIN) & ~words.is_start_A[next_M] & (ends_M == next_M)
    differs_M = words.types_A[next_M] != words.types_A[ends_M - 1]
    is_strict_M = (first_M < ends_M) & ~(ends_B_M & before_B_M & differs_M)
    return first_M[is_strict_M], ends_M[is_strict_M]


_STRICT = {
    BIO.name: _strict_bio,
    IOB1.name: _strict_iob1,
    BIOES.name: _strict_bioes,
    BILOU.name: _strict_bioes,
    PLAIN.name: _strict_bio,
}
"""Name of the scheme -> what picks its strict spans."""
