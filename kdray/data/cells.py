"""Columns checked cell by cell: a text is a text, a label is a name or a whole number.

A wrong cell is a DataError with its row, counted from 1 without a header. Which labels belong together, and which
number each gets, is `kdray.data.splits`'s business.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdray.data.sources import Column, Table
from kdray.errors import DataError, did_you_mean

UNLABELLED = -1
"""What datasets with named labels write where a row has none."""
WHOLE = re.compile(r"(-?\d+)(?:\.0+)?")
"""A whole number, also as it is written once its column has held a gap: 1.0."""


@dataclass(frozen=True)
class LabelCells:
    """A label column: each row's place in `names`."""

    codes: np.ndarray
    names: tuple[str | None, ...]
    """None: a row without a label."""


def text_column(table: Table, name: str, setting: str) -> pa.Array:
    """The column as Arrow text. Raises DataError for a missing column and at the first cell that is no text."""
    column = _column(table, name, setting)
    try:
        return _as_text(column)
    except (pa.ArrowException, UnicodeError, TypeError) as error:
        for row in range(len(column)):
            fault = _text_fault(_cell(column, row))
            if fault:
                raise _refusal(table, row, name, fault, "every cell must hold a text") from None
        raise DataError(f"{table.where}, column {name!r}: not a column of texts ({error}).") from None


def label_column(table: Table, name: str, class_names: Sequence[str] | None) -> LabelCells:
    """The label column. Raises DataError at the first cell that is neither a name nor a whole number."""
    codes, distinct = _coded(_column(table, name, "task.label"))
    names = []
    for code, cell in enumerate(distinct):
        try:
            names.append(_label_name(cell, class_names))
        except ValueError as error:
            row = int(np.flatnonzero(codes == code)[0])
            raise _refusal(table, row, name, str(error), "a label is a name or a whole number") from None
    return LabelCells(codes, tuple(_without_points(names)))


def _without_points(names: Sequence[str | None]) -> Sequence[str | None]:
    """The names, without a point where all of them are whole numbers: so other files and formats write them."""
    numbers = [name and WHOLE.fullmatch(name) for name in names]
    if not all(number or name is None for name, number in zip(names, numbers, strict=True)):
        return names
    return [number and number[1] for number in numbers]


def _column(table: Table, name: str, setting: str) -> Column:
    if name in table.columns:
        return table.columns[name]
    raise DataError(
        f"{table.where}: no column {name!r} ({setting}); {did_you_mean(name, table.columns)} "
        f"Set {setting}; or, if these are the cells of a first row and there is no header, give data.columns."
    )


def _refusal(table: Table, row: int, name: str, fault: str, rule: str) -> DataError:
    return DataError(f"{table.where}, row {row + 1}, column {name!r}: {fault}; {rule}. Mend or remove that row.")


def _as_text(column: Column) -> pa.Array:
    if isinstance(column, list):
        if not all(isinstance(cell, str) for cell in column):
            raise TypeError("a cell is not a text")
        return pa.array(column, pa.large_string())
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count or not _is_text(column.type):
        raise TypeError(f"Arrow type {column.type}")
    text = pa.concat_arrays([pa.array([], pa.large_string()), *(c.cast(pa.large_string()) for c in column.chunks)])
    text.validate(full=True)
    return text


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in (*tests, pa.types.is_binary, pa.types.is_large_binary))


def _cell(column: Column, row: int) -> Any:
    """The value of one cell; bytes where it is not UTF-8."""
    if isinstance(column, list):
        return column[row]
    try:
        return column[row].as_py()
    except UnicodeDecodeError as error:
        return error.object


def _text_fault(cell: Any) -> str | None:
    if cell is None:
        return "the cell is empty (null)"
    if not isinstance(cell, str | bytes):
        return f"{short_repr(cell)} is not a text"
    try:
        _ = cell.decode() if isinstance(cell, bytes) else cell.encode()
    except UnicodeDecodeError as error:
        return f"byte {error.object[error.start]:#04x} is not UTF-8"
    except UnicodeEncodeError:
        return f"{short_repr(cell)} holds half a character (a lone surrogate)"
    return None


def _coded(column: Column) -> tuple[np.ndarray, list[Any]]:
    """Each row's place among the different cells, and these."""
    if isinstance(column, list):
        places: dict[tuple[type, str], int] = {}
        cells: list[Any] = []
        codes = np.empty(len(column), np.int64)
        for row, cell in enumerate(column):
            key = (type(cell), repr(cell))  # True is not 1, and a list has no hash
            if key not in places:
                places[key] = len(cells)
                cells.append(cell)
            codes[row] = places[key]
        return codes, cells
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_nested(column.type):
        return _coded(column.to_pylist())
    if _is_text(column.type):
        column = column.cast(pa.large_binary())
    encoded = pc.dictionary_encode(column.combine_chunks(), null_encoding="encode")
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()


def _label_name(cell: Any, class_names: Sequence[str] | None) -> str | None:
    """The label's name; None for a row without. Raises ValueError with what is wrong."""
    match cell:
        case bool():
            return str(cell).lower()
        case int() if class_names is not None and cell == UNLABELLED:
            return None
        case int() if class_names is not None:
            if 0 <= cell < len(class_names):
                return class_names[cell]
            raise ValueError(f"label {cell} has no name; there are {len(class_names)} ({', '.join(class_names)})")
        case int():
            return str(cell)
        case float() if cell.is_integer():
            return str(int(cell))
        case float():
            raise ValueError(f"label {cell} is not a whole number")
    fault = _text_fault(cell)
    if fault:
        raise ValueError(fault.replace("is not a text", "is not a label"))
    name = (cell.decode() if isinstance(cell, bytes) else str(cell)).strip()
    if not name:
        raise ValueError("the label is blank")
    return name


def short_repr(value: Any) -> str:
    """A value in a sentence, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
