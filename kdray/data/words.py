r"""Words of a text with the places of their characters, and spans of characters as tags of these words.

The rule follows the tokenised corpora that taggers learn from (CoNLL-2003, WNUT-17, OntoNotes, Universal Dependencies):

- letters, digits and the marks on them are a word; each other visible character is one, too, with what belongs to it
  (a flag, an emoji of several parts); several points, question and exclamation marks, or dashes are one
- these stay whole: addresses (https://..., www..., name@host), @names, #tags, numbers and times with points, commas or
  colons inside (3.14, 1,000, 10:30), and abbreviations with points (U.S., e.g.)
- the English 's, 'm, 'd, 't, 're, 've and 'll are words of their own; another apostrophe divides words (l, ', homme)
- a hyphen and a slash divide words (Berlin, -, based), as in OntoNotes and spaCy, because spans often end before them;
  CoNLL-2003 and WNUT-17 keep such words whole
- in scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), each character is a word
- white space, control characters and invisible marks such as the zero-width space divide words, and are in none
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from tokenizers import Regex, pre_tokenizers

from kdray.sources.tables import short_repr

OUTSIDE = "O"

# The joiners of Persian and Indic words, and the soft hyphen, are inside words.
_WORD = r"[\p{L}\p{M}\p{N}_\x{200C}\x{200D}\x{AD}]"
_INVISIBLE = r"\s\p{Cc}\x{200B}\x{200E}\x{200F}\x{2028}-\x{202E}\x{2060}-\x{206F}\x{FEFF}"
_NO_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_LETTER = rf"(?:(?![{_NO_SPACES}]){_WORD})"
_RULES = (
    # Punctuation directly behind an address belongs to the sentence.
    rf"(?:(?:https?|ftp)://|www\.)[^{_INVISIBLE}<>\"]*[^{_INVISIBLE}<>\".,;:!?'()\[\]{{}}]",
    # The length is limited, so that a long text without @ takes no longer for each of its characters.
    r"[A-Za-z0-9._%+\-]{1,64}@[A-Za-z0-9\-]{1,63}(?:\.[A-Za-z0-9\-]{1,63})+",
    rf"[@#]{_WORD}+",
    rf"\p{{L}}(?:\.\p{{L}})+(?!{_WORD})\.?",
    rf"['\u2019](?:s|m|d|t|re|ve|ll|S|M|D|T|RE|VE|LL)(?!{_WORD})",
    rf"[{_NO_SPACES}][\p{{M}}\x{{200C}}\x{{200D}}]*",
    rf"{_LETTER}+(?:(?<=\p{{Nd}})[.,:](?=\p{{Nd}}){_LETTER}+)*",
    r"[.!?]{2,}|-{2,}",
    rf"(?![{_INVISIBLE}])\X",
)
PATTERN = "|".join(_RULES)
"""The regular expression of a word, for `tokenizers.Regex`."""
_SPLITTER = pre_tokenizers.Split(Regex(PATTERN), "removed", invert=True)


@dataclass(frozen=True)
class Words:
    """The words of a text, in order."""

    texts: tuple[str, ...]
    starts: tuple[int, ...]
    """The first character of each word: Unicode code points from 0, as Python counts them."""
    ends: tuple[int, ...]
    """The character after the last one of each word."""
    text: str
    """The whole text."""

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def of_list(cls, texts: Sequence[str]) -> "Words":
        """These words, in a text with a space between each two of them."""
        ends = tuple(accumulate(len(text) + 1 for text in texts))
        starts = (0, *ends[:-1]) if texts else ()
        return cls(tuple(texts), starts, tuple(end - 1 for end in ends), " ".join(texts))


def split_words(text: str) -> Words:
    """The words of a text, by the rule of this module; none for a text without visible characters."""
    found = _SPLITTER.pre_tokenize_str(text)
    places = [place for _, place in found]
    return Words(
        texts=tuple(text[start:end] for start, end in places),
        starts=tuple(start for start, _ in places),
        ends=tuple(end for _, end in places),
        text=text,
    )


def tags_of_spans(text: str, words: Words, spans: Sequence[Any]) -> list[str]:
    """A BIO tag for each word of a text, from spans of its characters: objects with `start`, `end` and `label`.

    Further keys, and white space at the ends of a span, do not matter. Raises ValueError with what is wrong, for a span
    that is no such object, is empty, is not within the text, begins or ends inside a word, or overlaps another one.
    """
    tags = [OUTSIDE] * len(words)
    checked = sorted((_checked_span(text, span) for span in spans), key=lambda span: span[:2])
    for before, behind in pairwise(checked):
        if behind[0] < before[1]:
            raise ValueError(
                f"{_describe(text, *before)} and {_describe(text, *behind)} overlap; a word can be in one span only"
            )
    for start, end, label in checked:
        first, after = bisect_right(words.ends, start), bisect_left(words.starts, end)
        _check_ends(text, words, (start, end, label), range(first, after))
        tags[first:after] = [f"B-{label}", *[f"I-{label}"] * (after - first - 1)]
    return tags


def _checked_span(text: str, span: Any) -> tuple[int, int, str]:
    """The first character, the one after the last, and the label. Raises ValueError with what is wrong."""
    if not isinstance(span, Mapping):
        raise ValueError(f'span {short_repr(span)} is not an object such as {{"start": 0, "end": 5, "label": "city"}}')
    for key in ("start", "end", "label"):
        if span.get(key) is None:
            raise ValueError(f"span {short_repr(span)} has no {key!r}; a span needs start, end and label")
    start, end, label = span["start"], span["end"], span["label"]
    for key, value in (("start", start), ("end", end)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{key!r} of span {short_repr(span)} is not a whole number; places are counted from 0")
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"'label' of span {short_repr(span)} is not a text; it is the type of the span, such as city")
    if start < 0 or end > len(text):
        raise ValueError(
            f"span {start} to {end} ({short_repr(label)}) is not within the text, which has {len(text)} characters"
        )
    if start >= end:
        raise ValueError(f"span {start} to {end} ({short_repr(label)}) is empty; end is the place behind the span")
    return start, end, label.strip()


def _check_ends(text: str, words: Words, span: tuple[int, int, str], covered: range) -> None:
    """Raise ValueError for a span without words, and for one that begins or ends inside a word."""
    if not covered:
        raise ValueError(f"{_describe(text, *span)} is empty: it has white space only")
    for verb, word, is_cut in (
        ("begins", covered[0], words.starts[covered[0]] < span[0]),
        ("ends", covered[-1], words.ends[covered[-1]] > span[1]),
    ):
        if is_cut:
            raise ValueError(
                f"{_describe(text, *span)} {verb} inside the word {short_repr(words.texts[word])}, which is "
                f"{words.starts[word]} to {words.ends[word]}; a span has complete words, and its places count "
                f"characters (not bytes) from 0"
            )


def _describe(text: str, start: int, end: int, label: str) -> str:
    return f"span {start} to {end} ({short_repr(label)}, {short_repr(text[start:end])})"
