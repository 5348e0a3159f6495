"""Checks columns of 0 and 1: one column for each label, 1 where the row has it.

A wrong cell raises DataError with its row and column. Letters: N rows, C labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdray.data.distinct_cells import cell_text, read_distinct
from kdray.data.gold import SeveralLabels
from kdray.sources.tables import Table, short_repr

_TEXTS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
"""The texts of an indicator, in small letters. Table libraries write 1.0 if a cell of the column is empty."""
_RULE = "every cell must be 0 or 1, or false or true"


def indicator_columns(table: Table, names: Sequence[str], setting: str) -> np.ndarray:
    """The columns with these names as 0 and 1 (N x C, int8). `setting` is the setting that names them.

    Raises DataError if a column is missing, and with file, row and column for a cell that is empty, that is neither 0
    nor 1 nor a truth value, or that is of another kind than the cells before it in its column.
    """
    columns = []
    for name in names:
        codes, values = read_distinct(table, name, setting, _indicator, _RULE)
        columns.append(np.array(values, np.int8)[codes])
    return np.stack(columns, axis=1)


def indicated_labels(indicators_NxC: np.ndarray, names: Sequence[str]) -> SeveralLabels:
    """The labels of each row, from their indicators: the names of the columns with a 1."""
    return SeveralLabels(
        codes=np.nonzero(indicators_NxC)[1].astype(np.int64),
        by_code=tuple(names),
        starts=np.cumsum([0, *np.count_nonzero(indicators_NxC, axis=1)], dtype=np.int64),
        absent=np.zeros(len(indicators_NxC), bool),
    )


def _indicator(cell: Any) -> int:
    """0 or 1. Raises ValueError with the problem."""
    match cell:
        case None:
            raise ValueError("the cell is empty")
        case bool():
            return int(cell)
        case int() | float() if cell in (0, 1):
            return int(cell)
        case str() | bytes():
            text = cell_text(cell)
            if not text:
                raise ValueError("the cell is empty")
            if text.lower() in _TEXTS:
                return _TEXTS[text.lower()]
            raise ValueError(f"{short_repr(text)} is neither 0 nor 1")
    raise ValueError(f"{short_repr(cell)} is neither 0 nor 1")
