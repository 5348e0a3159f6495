r"""Which texts repeat other texts: texts without labels that stand in validation or test, too.

A text is an exact repeat if it is equal after Unicode normalisation (NFKC), case folding, and with one space for each
piece of white space. It is a near repeat if most of its word trigrams (three words in a row) are those of the other
text, and the reverse: the shared trigrams are at least `NEAR` of all trigrams of the two texts (Jaccard's coefficient
of the sets; Broder 1997, "On the resemblance and containment of documents"). A text with fewer than three words has no
trigram, so it can only be an exact repeat. A pair of texts repeats a pair if both its texts repeat the other's, each
exactly or nearly.

All pairs of rows are compared. MinHash, which compares a sample of hashes, is for cases in which both sides are large;
here one side has thousands of rows, and the product of two sparse matrices of counts is exact.

Letters: N rows, B rows of a block, M rows of all others, K trigrams of the others.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

Columns: TypeAlias = Mapping[str, Any]
"""`text` -> a list or an Arrow array of texts, or of lists of words; for pairs of texts also `pair` -> the second ones.
Other columns do not matter."""

WORDS = 3
"""The words of a trigram."""
NEAR = 0.8
"""The smallest share of common trigrams of a near repeat.

It was chosen by reading the pairs of texts in train and in the other splits of SST-2, GoEmotions, STS-B and WNUT-17:

- from 0.8 on, all pairs are one text with other signs, with a word more or less, or with one exchanged: at an end of 11
  or more words, or inside a text of 29 or more
- from 0.7 to 0.8 most are, but some differ in the word that matters: "a black and white dog is running through the
  field" and "... the grass", "that's a weird way of spelling Tobin" and "... Disenchanted"
- from 0.6 to 0.7 most are two texts: "a woman is peeling a tuber" and "... a potato"

SST-2 and WNUT-17 have no pair above 0.6. GoEmotions has the most near repeats: 180 of 43,410 rows of train."""
BLOCK_ROWS = 2_000
"""At most so many rows are read at once."""
BLOCK_CELLS = 2_000_000
"""At most so many pairs of rows are compared at once: about 100 MB if all of them share a trigram."""
FIRST_ROWS = 100
"""So many of the others are compared first. If most texts come from one template, nearly all are near to one of these,
and need no comparison with the rest."""
NONE = -1
"""In place of a row of the others: there is no such row."""

# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters. Each character is a word.
_ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# White space, punctuation, signs and emojis. \w would not do: it has no vowel signs of Indic scripts.
_BETWEEN = (
    r"\s\x00-/:-@\[-`{-\xbf\u060c\u061b\u061f\u06d4\u0964\u0965\u2000-\u2bff\u3000-\u303f"
    "\ufe00-\ufe0f\U0001f000-\U0001faff"
)
_WORD = re.compile(rf"[{_ALONE}]|[^{_BETWEEN}{_ALONE}]+")


@dataclass(frozen=True)
class Example:
    """A text and the text that it repeats, as their rows have them; of pairs, both texts with a slash between."""

    text: str
    repeated: str
    other: int
    """The number of the others, from 0, in which `repeated` stands."""


@dataclass(frozen=True, eq=False)
class Repeats:
    """Which rows repeat a row of the others."""

    exact_N: np.ndarray
    """bool: the row is an exact repeat."""
    near_N: np.ndarray
    """bool: the row is a near repeat, and no exact one."""
    exact: Example | None
    """The first exact repeat."""
    near: Example | None
    """The first near repeat."""


def repeats(columns: Columns, others: Sequence[Columns]) -> Repeats:
    """Which rows of `columns` repeat a row of one of the `others`, such as the validation rows and the test rows.

    Reads `columns` in blocks, so the memory does not grow with them, apart from a few bytes a row. All must have the
    same of the columns text and pair.
    """
    library = _Library(others)
    rows = len(columns["text"])
    exact_rows_N, near_rows_N = np.full(rows, NONE), np.full(rows, NONE)
    for start in range(0, rows, BLOCK_ROWS):
        block = slice(start, min(start + BLOCK_ROWS, rows))
        sides = _folded(columns, block)
        exact_rows_N[block] = library.exact_rows(sides)
        near_rows_N[block] = library.near_rows(sides, exact_rows_N[block] == NONE)
    return Repeats(
        exact_N=exact_rows_N != NONE,
        near_N=near_rows_N != NONE,
        exact=_first_example(exact_rows_N, columns, others),
        near=_first_example(near_rows_N, columns, others),
    )


class _Library:
    """The rows of all others, one after the other, prepared for comparisons."""

    def __init__(self, others: Sequence[Columns]) -> None:
        folded = [_folded(columns, slice(None)) for columns in others]
        texts = [row for sides in folded for row in zip(*sides, strict=True)]
        # Reversed, so that of several equal texts the first one is the example.
        self._row_of = {text: row for row, text in reversed([*enumerate(texts)])}
        self._parts = [
            _Part(part, first) for first, part in ((0, texts[:FIRST_ROWS]), (FIRST_ROWS, texts[FIRST_ROWS:]))
        ]

    def exact_rows(self, sides: Sequence[Sequence[str]]) -> np.ndarray:
        """The first row here that is equal to each row of a block (B), or NONE."""
        return np.array([self._row_of.get(text, NONE) for text in zip(*sides, strict=True)], np.int64)

    def near_rows(self, sides: Sequence[Sequence[str]], is_open_B: np.ndarray) -> np.ndarray:
        """The first row here that is near to each row of a block (B), or NONE; NONE where `is_open_B` is false."""
        found_B = np.full(len(is_open_B), NONE)
        grams = [tuple(map(_trigrams, text)) for text in zip(*sides, strict=True)]
        for part in self._parts:
            candidates = [row for row in np.flatnonzero(is_open_B & (found_B == NONE)) if part.may_be_near(grams[row])]
            for start in range(0, len(candidates), part.step):
                rows = np.array(candidates[start : start + part.step])
                found_B[rows] = part.near_rows([grams[row] for row in rows])
        return found_B


class _Part:
    """Some rows of the library. The trigrams of a row are one set for a text, and two for a pair."""

    def __init__(self, texts: Sequence[tuple[str, ...]], first: int) -> None:
        """`first` is the number of the first of these rows."""
        self._first = first
        self._sides = [_Side([_trigrams(text) for text in side]) for side in zip(*texts, strict=True)]
        self.step = max(1, BLOCK_CELLS // max(1, len(texts)))
        """The number of rows that may be compared at once."""

    def may_be_near(self, grams: tuple[set[str], ...]) -> bool:
        """Whether the row with these trigrams may be near to a row here."""
        return bool(self._sides) and all(side.may_be_near(own) for side, own in zip(self._sides, grams, strict=True))

    def near_rows(self, grams: Sequence[tuple[set[str], ...]]) -> np.ndarray:
        """The first row here that is near to each of these rows (B), or NONE."""
        sides = [side.near(own) for side, own in zip(self._sides, zip(*grams, strict=True), strict=True)]
        near_BxM = reduce(sparse.csr_array.multiply, sides)
        near_BxM.sort_indices()
        rows, near = near_BxM.nonzero()
        found_B = np.full(len(grams), NONE)
        # Of several assignments to one row, numpy keeps the last: here the first row that is near.
        found_B[rows[::-1]] = self._first + near[::-1]
        return found_B


class _Side:
    """The trigrams of the first texts of some rows, or of the second ones."""

    def __init__(self, grams: Sequence[set[str]]) -> None:
        # A text is handed over as the set of its trigrams.
        self._counter = CountVectorizer(analyzer=_itself, dtype=np.int32)
        self._grams_KxM = self._counter.fit_transform(grams).T.tocsr()
        self._known = set(self._counter.vocabulary_)
        self._sizes_M = np.array([len(each) for each in grams])

    def may_be_near(self, grams: set[str]) -> bool:
        """Whether enough of these trigrams occur in the texts here; most texts have too few, and need no product."""
        return len(self._known & grams) >= NEAR * len(grams)

    def near(self, grams: Sequence[set[str]]) -> sparse.csr_array:
        """Whether each text with these trigrams is near to each text here (B x M, bool)."""
        sizes_B = np.array([len(each) for each in grams])
        common = (self._counter.transform(grams) @ self._grams_KxM).tocoo()
        shares = common.data / (sizes_B[common.row] + self._sizes_M[common.col] - common.data)
        is_near = shares >= NEAR
        places = (common.row[is_near], common.col[is_near])
        return sparse.csr_array((is_near[is_near], places), (len(grams), len(self._sizes_M)))


def _folded(columns: Columns, rows: slice) -> list[list[str]]:
    """The texts of these rows, and for pairs the second texts, in the form in which equal texts are exact repeats."""
    return [
        [" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in _texts(columns[name][rows])]
        for name in ("text", "pair")
        if name in columns
    ]


def _texts(column: Any) -> Iterator[str]:
    """The texts of a column; the words of a text are joined."""
    cells = column.to_pylist() if isinstance(column, pa.Array | pa.ChunkedArray) else column
    return (cell if isinstance(cell, str) else " ".join(cell) for cell in cells)


def _trigrams(text: str) -> set[str]:
    """The trigrams of a text. A shorter text is one itself, with all its signs, so it is near to equal texts only."""
    words = _WORD.findall(text)
    if len(words) < WORDS:
        return {text}
    return {" ".join(gram) for gram in zip(*(words[start:] for start in range(WORDS)), strict=False)}


def _itself(grams: set[str]) -> set[str]:
    return grams


def _first_example(rows_N: np.ndarray, columns: Columns, others: Sequence[Columns]) -> Example | None:
    """The first row that repeats one; `rows_N` has the row of the library that each row repeats, or NONE."""
    found = np.flatnonzero(rows_N != NONE)
    if not len(found):
        return None
    row, number = int(rows_N[found[0]]), 0
    while row >= len(others[number]["text"]):
        row, number = row - len(others[number]["text"]), number + 1
    return Example(_as_one(columns, int(found[0])), _as_one(others[number], row), number)


def _as_one(columns: Columns, row: int) -> str:
    cells = [columns[name][slice(row, row + 1)] for name in ("text", "pair") if name in columns]
    return " / ".join(text for cell in cells for text in _texts(cell))
