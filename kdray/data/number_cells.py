"""Checks a column of numbers cell by cell: numbers, or texts that hold one number each, as in csv files.

A wrong cell raises DataError with its row. Whether the numbers make sense together (all equal, outside a range) is for
the task to say.
"""

import math
import re
from decimal import Decimal
from typing import Any

import numpy as np

from kdray.data.distinct_cells import cell_text, read_distinct
from kdray.sources.tables import Table, short_repr

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# Not `float` alone: it accepts 1_000, digits of other scripts, nan and infinity.
_WITH_COMMAS = re.compile(r"[+-]?[\d.,]*\d[\d.,]*([eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_RULE = "every cell must hold one finite number with a decimal point, or be empty if its row has no number"


def number_column(table: Table, name: str, setting: str) -> np.ndarray:
    """The column as numbers (N, float64), nan for an empty cell. `setting` is the setting that names the column.

    Raises DataError if the column is missing, and with file and row for the first cell that is not a finite number or a
    text that holds one, or that is of another kind than the cells before it.
    """
    codes, values = read_distinct(table, name, setting, _number, _RULE)
    return np.array(values, np.float64)[codes]


def _number(cell: Any) -> float:
    """The number of one cell; nan for an empty one. Raises ValueError with the problem."""
    match cell:
        case None:
            return math.nan
        case bool():
            raise ValueError(f"{cell} is a truth value, not a number")
        case int() | float() | Decimal():
            return _finite(cell)
        case str() | bytes():
            return _number_of_text(cell_text(cell))
    raise ValueError(f"{short_repr(cell)} is not a number")


def _number_of_text(text: str) -> float:
    if not text:
        return math.nan
    if _NUMBER.fullmatch(text):
        return _finite(text)
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{short_repr(text)} is not a finite number")
    if "," in text and _WITH_COMMAS.fullmatch(text):
        raise ValueError(
            f"{short_repr(text)} has a comma, which may begin a fraction or stand between thousands: write 1.5 and 1000"
        )
    raise ValueError(f"{short_repr(text)} is not a number")


def _finite(cell: float | Decimal | str) -> float:
    try:
        number = float(cell)
    except OverflowError:  # an integer or Decimal with more than 308 digits
        number = math.inf
    if not math.isfinite(number):
        described = cell if isinstance(cell, str) else number
        raise ValueError(f"{short_repr(described)} is not a finite number")
    return number
