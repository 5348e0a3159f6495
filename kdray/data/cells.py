"""Checks text and label columns cell by cell: a text must be a string, a label a name or a whole number.

A wrong cell raises DataError with its row; rows are counted from 1, without the header. `kdray.data.splits` decides the
order of the labels and the number of each.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdray.data.gold import UNLABELLED, OneLabel
from kdray.errors import DataError, did_you_mean
from kdray.sources.encodings import describe_bad_byte
from kdray.sources.tables import Column, Table, short_list, short_repr

WHOLE_NUMBER = re.compile(r"(-?\d+)(?:\.0+)?")
"""A whole number, with or without a fraction of zeros.

A table library turns a column of integers with a missing value into floats, and then writes 1 as 1.0.
"""


def text_column(table: Table, name: str, setting: str) -> pa.Array:
    """The column as Arrow text (large_string), one cell for each row.

    `setting` is the setting that names the column, for messages. Raises DataError if the column is missing, and for the
    first cell that is not a text.
    """
    column = find_column(table, name, setting)
    try:
        return _as_text(column)
    except (pa.ArrowException, UnicodeError, TypeError) as error:
        # Arrow converts a whole column at once and does not report the row: only after a failure, look at each cell.
        for row in range(len(column)):
            problem = text_problem(_cell(column, row))
            if problem:
                raise cell_error(table, row, name, problem, "every cell must hold a text") from None
        raise DataError(f"{table.where}, column {name!r}: not a column of texts ({error}).") from None


def label_column(table: Table, name: str, class_names: Sequence[str] | None, may_be_empty: bool = False) -> OneLabel:
    """The label column as names. `class_names` are the names of the numbers 0, 1, ... in the dataset's own features.

    Raises DataError if the column is missing, and for the first cell that is neither a name nor a whole number; with
    `may_be_empty`, a row with an empty or blank cell has no label.
    """
    codes, distinct_cells = encode_column(find_column(table, name, "task.label"))
    names = []
    # Each different value is checked once, however many rows have it.
    for code, cell in enumerate(distinct_cells):
        try:
            names.append(None if may_be_empty and _is_empty(cell) else _label_name(cell, class_names))
        except ValueError as error:
            row = int(np.flatnonzero(codes == code)[0])
            raise cell_error(table, row, name, str(error), "a label is a name or a whole number") from None
    return OneLabel(codes, tuple(_without_zero_fractions(names)))


def _without_zero_fractions(names: Sequence[str | None]) -> Sequence[str | None]:
    """The names, with 1.0 as 1 if all of them are whole numbers.

    So a label has the same name in every file and format. If one name is no whole number (1.1), all stay as they are.
    """
    whole_numbers: list[str | None] = []
    for name in names:
        if name is None:
            whole_numbers.append(None)
            continue
        match = WHOLE_NUMBER.fullmatch(name)
        if match is None:
            return names
        whole_numbers.append(match[1])
    return whole_numbers


def find_column(table: Table, name: str, setting: str) -> Column:
    """The column with this name. Raises DataError, with the names that exist, if it is missing."""
    column = table.column(name)
    if column is not None:
        return column
    names = table.names
    hint = did_you_mean(name, names, [short_list(sorted(names))])
    raise DataError(
        f"{table.where}: no column {name!r} ({setting}); {hint} {table.hint}Set {setting}; or, if these are the cells "
        f"of a first row and there is no header, give data.columns."
    )


def cell_error(table: Table, row: int, name: str, problem: str, rule: str) -> DataError:
    """The error for a wrong cell: its place, what is wrong with it, and the rule that all cells must satisfy."""
    return DataError(f"{table.where}, row {row + 1}, column {name!r}: {problem}; {rule}. Correct or remove that row.")


def _as_text(column: Column) -> pa.Array:
    """The column as large_string. Raises TypeError, UnicodeError or ArrowException if a cell is not a text."""
    if isinstance(column, list):
        if not all(isinstance(cell, str) for cell in column):
            raise TypeError("a cell is not a text")
        return pa.array(column, pa.large_string())
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count or not _is_text(column.type):
        raise TypeError(f"Arrow type {column.type}")
    chunks = [chunk.cast(pa.large_string()) for chunk in column.chunks]
    # concat_arrays accepts no empty list, and a column without rows may have no chunks.
    text = pa.concat_arrays([pa.array([], pa.large_string()), *chunks])
    # Strings in a parquet file are not checked while they are read; this checks that all bytes are UTF-8.
    text.validate(full=True)
    return text


def _is_text(arrow_type: pa.DataType) -> bool:
    """Whether the Arrow type holds strings, or bytes that may be UTF-8."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(arrow_type) for test in (*tests, pa.types.is_binary, pa.types.is_large_binary))


def _cell(column: Column, row: int) -> Any:
    """The value of one cell; its bytes if it is an Arrow string that is not UTF-8."""
    if isinstance(column, list):
        return column[row]
    try:
        return column[row].as_py()
    except UnicodeDecodeError as error:
        return error.object


def text_problem(cell: Any) -> str | None:
    """Why the cell is not a text, for a message; None if it is one."""
    if cell is None:
        return "the cell is empty (null)"
    if not isinstance(cell, str | bytes):
        return f"{short_repr(cell)} is not a text"
    try:
        _ = cell.decode() if isinstance(cell, bytes) else cell.encode()
    except UnicodeDecodeError as error:
        return f"{describe_bad_byte(error)} (data.encoding)"
    except UnicodeEncodeError:
        return f"{short_repr(cell)} holds half a character (a lone surrogate)"
    return None


def encode_column(column: Column) -> tuple[np.ndarray, list[Any]]:
    """Dictionary-encode a column: for each row the index of its cell among the different cells, and these cells."""
    if isinstance(column, list):
        codes_by_key: dict[tuple[type, str], int] = {}
        distinct_cells: list[Any] = []
        codes = np.empty(len(column), np.int64)
        for row, cell in enumerate(column):
            # Not the cell itself: True equals 1 as a dictionary key, and a list cannot be one.
            key = (type(cell), short_repr(cell) if isinstance(cell, list | dict) else repr(cell))
            if key not in codes_by_key:
                codes_by_key[key] = len(distinct_cells)
                distinct_cells.append(cell)
            codes[row] = codes_by_key[key]
        return codes, distinct_cells
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_nested(column.type):
        return encode_column(column.to_pylist())  # Arrow cannot dictionary-encode lists and structs
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())  # Arrow cannot dictionary-encode half precision
    if _is_text(column.type):
        # As bytes, a cell that is not UTF-8 does not fail here, but where it is read and its row is known.
        column = column.cast(pa.large_binary())
    encoded = pc.dictionary_encode(column.combine_chunks(), null_encoding="encode")
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str | bytes) and not cell.strip())


def _label_name(cell: Any, class_names: Sequence[str] | None) -> str | None:
    """The name of the label in this cell; None for a row without a label. Raises ValueError with the problem."""
    match cell:
        case bool():
            return str(cell).lower()
        case int() if class_names is not None and cell == UNLABELLED:
            return None
        case int() if class_names is not None:
            if 0 <= cell < len(class_names):
                return class_names[cell]
            raise ValueError(f"label {cell} has no name; there are {len(class_names)} ({short_list(class_names)})")
        case int():
            return str(cell)
        case float() if cell.is_integer():
            return str(int(cell))
        case float():
            raise ValueError(f"label {cell} is not a whole number")
    problem = text_problem(cell)
    if problem:
        raise ValueError(problem.replace("is not a text", "is not a label"))
    name = (cell.decode() if isinstance(cell, bytes) else str(cell)).strip()
    if not name:
        raise ValueError("the label is blank")
    return name
