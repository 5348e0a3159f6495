"""Reads each different cell of a column once, and refuses cells of several kinds.

For columns whose cells are few different values, or are read by a function that would be slow on every row.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeVar

import numpy as np

from kdray.data.cells import cell_error, encode_column, find_column, text_problem
from kdray.sources.tables import Table, short_repr

Value = TypeVar("Value")


def read_distinct(
    table: Table, name: str, setting: str, read: Callable[[Any], Value], rule: str
) -> tuple[np.ndarray, list[Value]]:
    """For each row the index of its cell's value (N, int64), and these values, from the function `read`.

    `read` raises ValueError with the problem of a cell; `rule` says what is allowed. Raises DataError with file, row
    and column if the column is missing, for the first such cell, and for a cell of another kind than those before it.
    """
    codes, cells = encode_column(find_column(table, name, setting))
    values, first_kind = [], None
    # The different cells are in the order in which they occur, so the first problem is that of the first row.
    for code, cell in enumerate(cells):
        try:
            values.append(read(cell))
            kind = _kind(cell)
            if kind and first_kind and kind != first_kind:
                raise ValueError(f"{short_repr(cell)} is a {kind}, but the column begins with a {first_kind}")
        except ValueError as error:
            row = int(np.flatnonzero(codes == code)[0])
            raise cell_error(table, row, name, str(error), rule) from None
        first_kind = first_kind or kind
    return codes, values


def cell_text(cell: str | bytes) -> str:
    """The text of a cell without white space around it. Raises ValueError if its bytes are not UTF-8."""
    problem = text_problem(cell)
    if problem:
        raise ValueError(problem)
    return (cell.decode() if isinstance(cell, bytes) else cell).strip()


def _kind(cell: Any) -> str | None:
    """What the cell is, for a message; None for an empty one, which goes with every kind."""
    match cell:
        case bool():
            return "truth value"
        case int() | float() | Decimal():
            return "number"
        case str() | bytes() if cell.strip():
            return "text"
    return None
