"""Checks columns whose cells are lists: the words of a sentence, their tags, or the labels of a row.

`cells` checks columns of single texts and labels. A list holds texts, or whole numbers. Shapes: N rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdray.data.cells import cell_error, find_column, text_problem
from kdray.errors import DataError
from kdray.sources.tables import Column, Table, short_repr

_RULE = "every cell must hold a list of texts, or a list of whole numbers"
_REMEDY = "give the rows as JSON lines or Parquet with lists in them; words and tags also as CoNLL"
_WORDS_RULE = "every cell must hold the list of the words of a sentence"


@dataclass(frozen=True)
class ListColumn:
    """A column of lists."""

    values: pa.Array
    """The items of all lists, row after row: large_string or int64."""
    starts: np.ndarray
    """The place of the first item of each row in `values`, and at the end their number (N + 1, int64)."""
    absent: np.ndarray
    """Whether the row has no list, not even an empty one (N, bool)."""

    def __len__(self) -> int:
        return len(self.absent)

    @property
    def has_texts(self) -> bool:
        """Whether the items are texts; False for whole numbers. The items of a column without any are texts."""
        return bool(pa.types.is_large_string(self.values.type))

    def place_of(self, value: int) -> tuple[int, int]:
        """The row and the place in its list, both from 0, of an item with this index in `values`."""
        row = int(np.searchsorted(self.starts, value, side="right")) - 1
        return row, value - int(self.starts[row])


def list_column(table: Table, name: str, setting: str, may_be_absent: bool = False) -> ListColumn:
    """The column of lists with this name; `setting` is the setting that names it, for messages.

    Raises DataError, with file, row and column, if the column is missing, for the first cell that is no list (null is
    accepted where `may_be_absent`), and for the first item that is null, a list itself, or of another kind than the
    first item of the column. A text such as "['a', 'b']" is not read as a list.
    """
    column = find_column(table, name, setting)
    items, lengths, absent = _flatten(column)
    if not may_be_absent and absent.any():
        raise cell_error(table, int(np.flatnonzero(absent)[0]), name, "the cell is empty (null)", _RULE)
    _check_cells(table, name, column, lengths)
    starts = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    try:
        return ListColumn(values=_as_values(items), starts=starts, absent=absent)
    except (pa.ArrowException, UnicodeError, TypeError) as error:
        # Arrow converts all items at once and does not report the place: only after a failure, look at each item.
        place = ListColumn(pa.nulls(len(items)), starts=starts, absent=absent).place_of
        first = None
        for number, item in enumerate(_python_items(items)):
            first = item if first is None else first
            problem = _problem(item, first)
            if problem:
                row, word = place(number)
                raise cell_error(table, row, name, f"item {word + 1} of the list: {problem}", _RULE) from None
        raise DataError(f"{table.where}, column {name!r}: not a column of lists ({error}).") from None


def word_column(table: Table, name: str, setting: str) -> ListColumn:
    """The column with the lists of words; raises DataError as `list_column` does, and for lists of numbers."""
    column = list_column(table, name, setting)
    if not column.has_texts:
        row, word = column.place_of(0)
        problem = f"item {word + 1} of the list is the number {column.values[0]}, not a word"
        raise cell_error(table, row, name, problem, f'{_WORDS_RULE}, and a number is written as a text ("3")')
    return column


def _flatten(column: Column) -> tuple[Any, np.ndarray, np.ndarray]:
    """All items, and for each row the length of its list (-1: no list) and whether the cell is null."""
    if isinstance(column, list):
        lengths = np.array([len(cell) if isinstance(cell, list) else -1 for cell in column], np.int64)
        absent = np.array([cell is None for cell in column], bool)
        items: Any = [item for cell in column if isinstance(cell, list) for item in cell]
        return items, np.where(absent, 0, lengths), absent
    absent = column.is_null().to_numpy()
    if not _is_list(column.type):
        return [], np.where(absent, 0, -1), absent
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    chunks = [chunk.flatten() for chunk in column.chunks]
    # concat_arrays accepts no empty list, and a column without rows may have no chunks.
    values = pa.concat_arrays([pa.array([], column.type.value_type), *chunks])
    return (values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values), lengths, absent


def _check_cells(table: Table, name: str, column: Column, lengths: np.ndarray) -> None:
    """Raise DataError for the first cell that is neither a list nor null."""
    if not (lengths < 0).any():
        return
    row = int(np.flatnonzero(lengths < 0)[0])
    cell = column[row] if isinstance(column, list) else column[row].as_py()
    if isinstance(cell, bytes):
        cell = cell.decode(errors="replace")
    if not isinstance(cell, str):
        raise cell_error(table, row, name, f"{short_repr(cell)} is not a list", _RULE)
    looks = " and is not read as a list" if cell.lstrip().startswith("[") else ", not a list"
    raise cell_error(table, row, name, f"{short_repr(cell)} is a text{looks}", f"{_RULE}: {_REMEDY}")


def _as_values(items: Any) -> pa.Array:
    """The items as large_string or int64. Raises TypeError, UnicodeError or ArrowException if that is not possible."""
    if isinstance(items, list):
        kinds = {type(item) for item in items}
        if kinds <= {str}:
            return pa.array(items, pa.large_string())
        if kinds <= {int, float}:
            return pa.array(items).cast(pa.int64())
        raise TypeError("the items are of several kinds")
    if items.null_count:
        raise TypeError("an item is null")
    if pa.types.is_null(items.type):  # all lists are empty
        return items.cast(pa.large_string())
    if pa.types.is_integer(items.type) or pa.types.is_floating(items.type):
        return items.cast(pa.int64())
    if any(test(items.type) for test in (pa.types.is_primitive, pa.types.is_nested, pa.types.is_decimal)):
        raise TypeError(f"Arrow type {items.type}")
    texts = items.cast(pa.large_string())
    # Strings in a parquet file are not checked while they are read; this checks that all bytes are UTF-8.
    texts.validate(full=True)
    return texts


def _python_items(items: Any) -> Iterator[Any]:
    """The items as Python values; the bytes of an Arrow string that is not UTF-8."""
    for item in items:
        try:
            yield item.as_py() if isinstance(item, pa.Scalar) else item
        except UnicodeDecodeError as error:
            yield error.object


def _problem(item: Any, first: Any) -> str | None:
    """Why the item cannot stand in the column, for a message; `first` is the first item that is not null."""
    if item is None:
        return "it is empty (null)"
    if isinstance(item, list):
        return f"{short_repr(item)} is a list in a list"
    if not isinstance(item, str | bytes) and not _is_whole(item):
        return f"{short_repr(item)} is neither a text nor a whole number"
    if isinstance(item, str | bytes) != isinstance(first, str | bytes):
        return f"{short_repr(item)} is of another kind than {short_repr(first)}, the first item of the column"
    return text_problem(item) if isinstance(item, str | bytes) else None


def _is_whole(item: Any) -> bool:
    if isinstance(item, float):
        return item.is_integer() and abs(item) < 2**53
    return isinstance(item, int) and not isinstance(item, bool) and abs(item) < 2**63


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)
