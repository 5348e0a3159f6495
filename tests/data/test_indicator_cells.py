"""Columns of 0 and 1: what is read from each kind of column, and the sentence for each kind of wrong cell."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kdray.data.indicator_cells import indicated_labels, indicator_columns
from kdray.errors import DataError
from kdray.sources.tables import Table


def table_of(**columns: Any) -> Table:
    return Table(
        "moods.csv",
        {name: cells if isinstance(cells, list) else pa.chunked_array([cells]) for name, cells in columns.items()},
    )


@pytest.mark.parametrize(
    "column",
    [
        [0, 1, 1],
        [0, 1.0, 1],
        [False, True, True],
        ["0", "1", " 1 "],
        ["0.0", "1.0", "1"],
        ["FALSE", "true", "True"],
        pa.array([0, 1, 1], pa.uint8()),
        pa.array([0.0, 1.0, 1.0]),
        pa.array([False, True, True]),
        pa.array([b"0", b"1", b"1"]),
        pa.array(["false", "true", "true"]).dictionary_encode(),
    ],
    ids=lambda column: str(column) if isinstance(column, list) else str(column.type),
)
def test_indicators_are_read_from_every_kind_of_column(column: Any) -> None:
    table = table_of(joy=column, fear=[1, 0, 0])
    indicators = indicator_columns(table, ["fear", "joy"], "task.label")
    assert indicators.dtype == np.int8
    assert indicators.tolist() == [[1, 0], [0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        ([0, 1, 2], "2 is neither 0 nor 1"),
        ([0, 1, -1], "-1 is neither 0 nor 1"),
        ([0, 1, 0.5], "0.5 is neither 0 nor 1"),
        ([0, 1, float("nan")], "nan is neither 0 nor 1"),
        ([0, 1, None], "the cell is empty"),
        (["0", "1", " "], "the cell is empty"),
        (["0", "1", "yes"], "'yes' is neither 0 nor 1"),
        (["0", "1", b"\xff"], "byte 0xff is not UTF-8"),
        ([0, 1, True], "True is a truth value, but the column begins with a number"),
        ([0, 1, "1"], "'1' is a text, but the column begins with a number"),
        ([0, 1, [1]], "[1] is neither 0 nor 1"),
        (pa.array([0, 1, None]), "the cell is empty"),
        (pa.array(["0", "1", "2"]), "'2' is neither 0 nor 1"),
    ],
)
def test_a_wrong_cell_is_refused_with_its_row_and_column(cells: Any, sentence: str) -> None:
    with pytest.raises(DataError) as error:
        indicator_columns(table_of(joy=[0, 0, 0], fear=cells), ["joy", "fear"], "task.label")
    assert str(error.value).startswith(f"moods.csv, row 3, column 'fear': {sentence}")
    assert "every cell must be 0 or 1" in str(error.value)


def test_a_missing_column_is_refused_with_the_setting() -> None:
    with pytest.raises(DataError, match=r"no column 'fera' \(task.label\); did you mean 'fear'"):
        indicator_columns(table_of(joy=[0], fear=[1]), ["joy", "fera"], "task.label")


def test_the_labels_of_indicators_are_the_names_of_the_columns() -> None:
    indicators = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], np.int8)
    labels = indicated_labels(indicators, ["joy", "fear", "awe"])
    assert len(labels) == 3
    assert labels.numbered({"awe": 0, "fear": 1, "joy": 2}).to_pylist() == [[2, 0], [], [1]]
    assert not labels.missing({}).any()
