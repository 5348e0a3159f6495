"""A column of numbers: what is read from each kind of column, and the sentence for each kind of wrong cell."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kdray.data.number_cells import number_column
from kdray.errors import DataError
from kdray.sources.opening import open_source
from kdray.sources.reading import Reading
from kdray.sources.tables import Table


def read(cells: Any) -> list[float | None]:
    column = cells if isinstance(cells, list) else pa.chunked_array([cells])
    values = number_column(Table("scores.json", {"score": column}), "score", "task.label")
    assert values.dtype == np.float64
    return [None if np.isnan(value) else float(value) for value in values]


@pytest.mark.parametrize(
    "column",
    [
        [1, 2.5, None, -3],
        ["1", " 2.5\n", "", "-3.0"],
        ["+1.", "25e-1", " ", "-3"],
        pa.array([1.0, 2.5, None, -3.0]),
        pa.array([1.0, 2.5, None, -3.0], pa.float16()),
        pa.array([Decimal("1.0"), Decimal("2.5"), None, Decimal("-3.0")]),
        pa.array(["1", "2.5", None, "-3"]),
        pa.array([b"1", b"2.5", b" ", b"-3"], pa.large_binary()),
        pa.array(["1", "2.5", None, "-3"]).dictionary_encode(),
    ],
    ids=lambda column: "list" if isinstance(column, list) else str(column.type),
)
def test_numbers_are_read_from_every_kind_of_column(column: Any) -> None:
    assert read(column) == [1, 2.5, None, -3]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: pa.array([1, None], pa.int8()), [1, None]),
        (lambda: pa.nulls(2), [None, None]),
        (lambda: [None, ""], [None, None]),
        (lambda: pa.array([], pa.float64()), []),
        (lambda: ["1e3", ".5"], [1000, 0.5]),
    ],
)
def test_other_columns(make: Callable[[], Any], expected: list[float | None]) -> None:
    assert read(make()) == expected


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ("good", "'good' is not a number"),
        ("1,5", "'1,5' has a comma, which may begin a fraction or stand between thousands: write 1.5 and 1000"),
        ("1,234.5", "'1,234.5' has a comma"),
        ("nan", "'nan' is not a finite number"),
        ("-Infinity", "'-Infinity' is not a finite number"),
        ("1e999", "'1e999' is not a finite number"),
        ("1_000", "'1_000' is not a number"),
        ("１", "'１' is not a number"),
        ("3 stars", "'3 stars' is not a number"),
        ("\ud800", "holds half a character"),
        (b"\xff", "byte 0xff is not UTF-8"),
    ],
)
def test_a_wrong_text_is_refused_with_its_row(cell: str | bytes, sentence: str) -> None:
    with pytest.raises(DataError) as error:
        read(["1", "2", cell, "x"])
    assert str(error.value).startswith("scores.json, row 3, column 'score': ")
    assert sentence in str(error.value)
    assert "every cell must hold one finite number" in str(error.value)


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        (float("nan"), "nan is not a finite number"),
        (float("-inf"), "-inf is not a finite number"),
        (10**400, "inf is not a finite number"),
        (True, "True is a truth value, not a number"),
        ("2", "'2' is a text, but the column begins with a number"),
        ([2], "[2] is not a number"),
        ({"value": 2}, "is not a number"),
    ],
)
def test_a_wrong_value_is_refused_with_its_row(cell: Any, sentence: str) -> None:
    with pytest.raises(DataError) as error:
        read([1, None, 2.5, cell])
    assert "row 4, " in str(error.value)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    "column", [pa.array([1.0, np.nan]), pa.array([1.0, np.inf]), pa.array([None, True]), pa.array([None, [1.0]])]
)
def test_a_wrong_value_of_an_arrow_column_is_refused_with_its_row(column: pa.Array) -> None:
    with pytest.raises(DataError, match="row 2, column 'score'"):
        read(column)


def test_a_missing_column_is_refused_with_the_setting() -> None:
    with pytest.raises(DataError, match=r"no column 'scor' \(task.label\); did you mean 'score'"):
        number_column(Table("scores.json", {"score": [1]}), "scor", "task.label")


def test_numbers_of_a_csv_file(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('text,score\na,1.5\nb,\nc,""\nd, 5e-1\n')
    (table,) = open_source(str(tmp_path), Reading(), None, None).read("train")
    np.testing.assert_array_equal(number_column(table, "score", "task.label"), [1.5, np.nan, np.nan, 0.5])
