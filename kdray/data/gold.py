"""The gold of rows, the right answers: one label for each row, a list of labels, or a number.

The cells of a table are checked first and keep the names of their labels. When the order of all labels is known,
`numbered` makes the column `label` of the splits: label numbers, lists of label numbers, or numbers as they are. The
functions below read such a column, whichever of the three it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

UNLABELLED = -1
"""The label of a row without a label, in datasets that give names to the numbers of their labels."""
NUMBER_STRATA = 10
"""Numbers are divided into so many groups of equal size, from which rows are drawn evenly."""


class Gold(Protocol):
    """The checked gold cells of one table."""

    def __len__(self) -> int: ...

    @property
    def names(self) -> frozenset[str]:
        """The names of all labels that occur; empty for numbers."""
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

    def __len__(self) -> int:
        return len(self.absent)

    @property
    def names(self) -> frozenset[str]:
        """See `Gold`."""
        return frozenset(self.by_code)

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
        flat = np.array([numbers[name] for name in self.by_code], np.int64)[self.codes]
        return pa.LargeListArray.from_arrays(self.starts.astype(np.int64), pa.array(flat, pa.int64()))


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

    def missing(self, numbers: Mapping[str, int]) -> np.ndarray:
        """See `Gold`."""
        return np.isnan(self.values)

    def unknown(self, numbers: Mapping[str, int]) -> tuple[int, str] | None:
        """See `Gold`."""
        return None

    def numbered(self, numbers: Mapping[str, int]) -> pa.Array:
        """See `Gold`."""
        return pa.array(self.values)


def gold_codes(column: pa.ChunkedArray) -> np.ndarray:
    """A number for each row: the same for rows with the same gold (N, int64)."""
    if pa.types.is_nested(column.type):
        # Arrow cannot dictionary-encode lists, so each list is written as text first.
        column = pc.binary_join(pc.cast(column, pa.large_list(pa.large_string())), ",")
    return pc.dictionary_encode(pa.concat_arrays(column.chunks)).indices.to_numpy(zero_copy_only=False).astype(np.int64)


def strata(column: pa.ChunkedArray) -> np.ndarray:
    """The group of each row from which rows are drawn evenly (N, int64).

    The label; of several labels the one with the fewest rows, or -1 without any; of numbers one of ten groups of equal
    size, by value.
    """
    if pa.types.is_nested(column.type):
        return _rarest_labels(column)
    values = column.to_numpy()
    if values.dtype.kind != "f":
        return values
    return np.searchsorted(np.quantile(values, np.linspace(0, 1, NUMBER_STRATA + 1)[1:-1]), values)


def rows_of_labels(column: pa.ChunkedArray, count: int) -> np.ndarray:
    """The number of rows with each of `count` labels (C); a label that a row has twice counts once."""
    rows, labels = _pairs(column)
    return np.bincount(np.unique(np.stack([rows, labels]), axis=1)[1], minlength=count)


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
