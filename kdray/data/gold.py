"""The gold of rows, the right answers: one label for each row, a list of labels, a number, or the text itself.

The cells of a table are checked first and keep the names of their labels. When the order of all labels is known,
`numbered` makes the column `label` of the splits: label numbers, lists of label numbers, or numbers as they are. The
functions below read such a column, whichever of the three it is. Where the text itself is the gold, it is empty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

UNLABELLED = -1
"""The label of a row without a label, in datasets that give names to the numbers of their labels, and in test splits of
benchmarks, whose gold is secret."""
NUMBER_STRATA = 10
"""Numbers are divided into so many groups of equal size, from which rows are drawn evenly."""


class Gold(Protocol):
    """The checked gold cells of one table."""

    def __len__(self) -> int: ...

    @property
    def names(self) -> frozenset[str]:
        """The names of all labels that occur; empty for numbers."""
        ...

    @property
    def has_minus_one(self) -> bool:
        """Whether -1 is the gold of a row."""
        ...

    def is_hidden(self, may_be_minus_one: bool) -> bool:
        """Whether no row has gold; unless `may_be_minus_one`, -1 is no gold."""
        ...

    def missing(self, numbers: Mapping[str, int]) -> np.ndarray:
        """Whether each row has no gold (N, bool); `numbers` are those of all labels."""
        ...

    def unknown(self, numbers: Mapping[str, int]) -> tuple[int, str] | None:
        """The first row with a label that has no number, and that label; None if all have one."""
        ...

    def numbered(self, numbers: Mapping[str, int]) -> pa.Array:
        """The column `label` of the splits. Rows without gold may have any value."""
        ...


@dataclass(frozen=True)
class OneLabel:
    """One label for each row."""

    codes: np.ndarray
    """For each row the index of its label in `by_code` (N, int64)."""
    by_code: tuple[str | None, ...]
    """The different labels. One of them is None if there are rows without a label."""

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def names(self) -> frozenset[str]:
        """See `Gold`."""
        return frozenset(name for name in self.by_code if name is not None)

    @property
    def has_minus_one(self) -> bool:
        """See `Gold`."""
        return str(UNLABELLED) in self.names

    def is_hidden(self, may_be_minus_one: bool) -> bool:
        """See `Gold`."""
        return not self.names - (set() if may_be_minus_one else {str(UNLABELLED)})

    def missing(self, numbers: Mapping[str, int]) -> np.ndarray:
        """See `Gold`."""
        return self._numbers({name: numbers.get(name, 0) for name in self.names}) == UNLABELLED

    def unknown(self, numbers: Mapping[str, int]) -> tuple[int, str] | None:
        """See `Gold`."""
        for code, name in enumerate(self.by_code):
            if name is not None and name not in numbers:
                return int(np.flatnonzero(self.codes == code)[0]), name
        return None

    def numbered(self, numbers: Mapping[str, int]) -> pa.Array:
        """See `Gold`."""
        return pa.array(self._numbers(numbers))

    def _numbers(self, numbers: Mapping[str, int]) -> np.ndarray:
        by_code = [UNLABELLED if name is None else numbers[name] for name in self.by_code]
        return np.array(by_code, np.int64)[self.codes]


@dataclass(frozen=True)
class SeveralLabels:
    """A list of labels for each row: one for each of its words, or those that hold for it."""

    codes: np.ndarray
    """The index of each label in `by_code`, row after row (int64)."""
    by_code: tuple[str, ...]
    """The different labels."""
    starts: np.ndarray
    """The place of the first label of each row in `codes`, and at the end their number (N + 1)."""
    absent: np.ndarray
    """Whether the row has no list, not even an empty one (N, bool)."""
    is_set: bool = False
    """Whether the order of the labels of a row has no meaning, and a label counts once."""

    def __len__(self) -> int:
        return len(self.absent)

    @property
    def names(self) -> frozenset[str]:
        """See `Gold`."""
        return frozenset(self.by_code)

    @property
    def has_minus_one(self) -> bool:
        """See `Gold`."""
        return str(UNLABELLED) in self.names

    def is_hidden(self, may_be_minus_one: bool) -> bool:
        """See `Gold`."""
        return not self.names - (set() if may_be_minus_one else {str(UNLABELLED)})

    def missing(self, numbers: Mapping[str, int]) -> np.ndarray:
        """See `Gold`. If no row of the table has any label, its labels are unknown."""
        return self.absent if len(self.codes) else np.ones(len(self), bool)

    def unknown(self, numbers: Mapping[str, int]) -> tuple[int, str] | None:
        """See `Gold`."""
        for code, name in enumerate(self.by_code):
            if name not in numbers:
                place = int(np.flatnonzero(self.codes == code)[0])
                return int(np.searchsorted(self.starts, place, side="right")) - 1, name
        return None

    def numbered(self, numbers: Mapping[str, int]) -> pa.Array:
        """See `Gold`."""
        flat, starts = np.array([numbers[name] for name in self.by_code], np.int64)[self.codes], self.starts
        if self.is_set:
            # Rows with the same labels are equal then, in whatever order their cells name them.
            rows = np.repeat(np.arange(len(self)), np.diff(starts))
            order = np.lexsort((flat, rows))
            rows, flat = rows[order], flat[order]
            is_first = np.ones(len(flat), bool)
            is_first[1:] = (np.diff(rows) > 0) | (np.diff(flat) > 0)
            rows, flat = rows[is_first], flat[is_first]
            starts = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=len(self)))))
        return pa.LargeListArray.from_arrays(starts.astype(np.int64), pa.array(flat, pa.int64()))


@dataclass(frozen=True)
class Numbers:
    """A number for each row."""

    values: np.ndarray
    """N, float64; nan for a row without gold."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def names(self) -> frozenset[str]:
        """See `Gold`."""
        return frozenset()

    @property
    def has_minus_one(self) -> bool:
        """See `Gold`."""
        return bool((self.values == UNLABELLED).any())

    def is_hidden(self, may_be_minus_one: bool) -> bool:
        """See `Gold`."""
        known = self.values[~np.isnan(self.values)]
        return not len(known) or (not may_be_minus_one and bool((known == UNLABELLED).all()))

    def missing(self, numbers: Mapping[str, int]) -> np.ndarray:
        """See `Gold`."""
        return np.isnan(self.values)

    def unknown(self, numbers: Mapping[str, int]) -> tuple[int, str] | None:
        """See `Gold`."""
        return None

    def numbered(self, numbers: Mapping[str, int]) -> pa.Array:
        """See `Gold`."""
        return pa.array(self.values)


@dataclass(frozen=True)
class OwnText:
    """The text of each row itself, as of language models: every row has gold, and no label."""

    rows: int

    def __len__(self) -> int:
        return self.rows

    @property
    def names(self) -> frozenset[str]:
        """See `Gold`."""
        return frozenset()

    @property
    def has_minus_one(self) -> bool:
        """See `Gold`."""
        return False

    def is_hidden(self, may_be_minus_one: bool) -> bool:
        """See `Gold`."""
        return False

    def missing(self, numbers: Mapping[str, int]) -> np.ndarray:
        """See `Gold`."""
        return np.zeros(self.rows, bool)

    def unknown(self, numbers: Mapping[str, int]) -> tuple[int, str] | None:
        """See `Gold`."""
        return None

    def numbered(self, numbers: Mapping[str, int]) -> pa.Array:
        """See `Gold`."""
        return pa.nulls(self.rows)


def no_gold(texts: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """The column `label`, of this type, of rows without gold: -1, nan, no list, or a list with -1 for each word."""
    if not pa.types.is_nested(kind):
        value = float("nan") if pa.types.is_floating(kind) else UNLABELLED
        return pa.array(np.full(len(texts), value), kind)
    if not pa.types.is_nested(texts.type):
        return pa.nulls(len(texts), kind)
    starts = np.concatenate(([0], np.cumsum(pc.list_value_length(texts).to_numpy())))
    return pa.LargeListArray.from_arrays(starts.astype(np.int64), pa.array(np.full(starts[-1], UNLABELLED)))


def gold_codes(column: pa.ChunkedArray) -> np.ndarray:
    """A number for each row: the same for rows with the same gold (N, int64)."""
    if pa.types.is_null(column.type):
        return np.zeros(len(column), np.int64)
    if pa.types.is_nested(column.type):
        # Arrow cannot dictionary-encode lists, so each list is written as text first.
        column = pc.binary_join(pc.cast(column, pa.large_list(pa.large_string())), pa.scalar(",", pa.large_string()))
    return pc.dictionary_encode(pa.concat_arrays(column.chunks)).indices.to_numpy(zero_copy_only=False).astype(np.int64)


def only_gold(table: pa.Table, labels: Sequence[str]) -> str | None:
    """What all answers of a split are, for a message; None if there are two different ones, or no answers.

    A row of words has as many answers as words; any other row has one.
    """
    column, what = table["label"], "row"
    if pa.types.is_null(column.type):
        return None
    if pa.types.is_nested(table["text"].type):
        column, what = pc.list_flatten(column), "word"
    if not len(column) or gold_codes(column).max() > 0:
        return None
    gold = with_names([column[0].as_py()], labels)[0]
    kind = "tag" if what == "word" else "labels" if isinstance(gold, list) else "label" if labels else "number"
    return f"all {len(column):,} {what}s have the {kind} {gold!r}"


def strata(column: pa.ChunkedArray) -> np.ndarray:
    """The group of each row from which rows are drawn evenly (N, int64).

    The label; of several labels the one with the fewest rows, or -1 without any; of numbers one of ten groups of equal
    size, by value. Where the text is the gold, all rows are one group.
    """
    if pa.types.is_null(column.type):
        return np.zeros(len(column), np.int64)
    if pa.types.is_nested(column.type):
        return _rarest_labels(column)
    values = column.to_numpy()
    if values.dtype.kind != "f":
        return values
    return np.searchsorted(np.quantile(values, np.linspace(0, 1, NUMBER_STRATA + 1)[1:-1]), values)


def rows_of_labels(column: pa.ChunkedArray, count: int) -> np.ndarray:
    """The number of rows with each of `count` labels (C); a label that a row has twice counts once."""
    rows, labels = _pairs(column)
    if not pa.types.is_nested(column.type):
        return np.bincount(labels, minlength=count)
    # One number for a pair: numpy finds the different pairs of two columns much more slowly.
    return np.bincount(np.unique(rows * count + labels) % count, minlength=count)


def first_row_with(column: pa.ChunkedArray, label: int) -> int:
    """The first row that has this label."""
    rows, labels = _pairs(column)
    return int(rows[np.flatnonzero(labels == label)[0]])


def with_names(values: Sequence[Any], labels: Sequence[str]) -> list[Any]:
    """The gold of rows with label names in place of label numbers; the numbers of a task without labels stay."""
    if not labels:
        return list(values)
    return [[labels[label] for label in value] if isinstance(value, list) else labels[value] for value in values]


def _pairs(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Each label of each row as a pair: the row, and the number of the label."""
    if not pa.types.is_nested(column.type):
        return np.arange(len(column)), column.to_numpy()
    lists = pa.concat_arrays(column.chunks)
    offsets = lists.offsets.to_numpy()
    return np.repeat(np.arange(len(lists)), np.diff(offsets)), lists.flatten().to_numpy()


def _rarest_labels(column: pa.ChunkedArray) -> np.ndarray:
    rows, labels = _pairs(column)
    rarest = np.full(len(column), -1, np.int64)
    if not len(labels):
        return rarest
    counts = rows_of_labels(column, int(labels.max()) + 1)
    # Written from the most frequent label to the rarest one, so the rarest label of a row stays.
    order = np.lexsort((labels, -counts[labels]))
    rarest[rows[order]] = labels[order]
    return rarest
