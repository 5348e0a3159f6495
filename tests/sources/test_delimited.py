"""Rows with a delimiter: what quotes mean, and rows with further cells."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kdray.data.cells import text_column
from kdray.errors import DataError
from kdray.sources import delimited
from kdray.sources.opening import open_source, read_file
from kdray.sources.reading import Reading
from kdray.sources.tables import Table

TWO = 'a\t"one\nb\t"two" more\tx\n'
SETTINGS: dict[str, Any] = {"format": "tsv", "columns": ("id", "text", "...")}


def read(folder: Path, content: str | bytes, name: str = "x.csv", **settings: Any) -> Table:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_file(folder / name, Reading(**settings))


def cells(table: Table, name: str) -> list[str]:
    column: pa.Array = text_column(table, name, "task.text")
    return list(column.to_pylist())


@pytest.mark.parametrize("content", ['text\tid\n"one\t1\n"two" more\t2\n', '"one\t1\r"two" more\t2\r'])
def test_in_a_csv_file_that_is_read_as_tsv_a_quote_is_a_character(tmp_path: Path, content: str) -> None:
    columns = () if content.startswith("text") else ("text", "id")
    assert cells(read(tmp_path, content, format="tsv", columns=columns), "text") == ['"one', '"two" more']


def test_a_file_with_another_ending_may_be_read_as_csv(tmp_path: Path) -> None:
    table = read(tmp_path, 'text,id\n"one, two",1\n', "x.data", format="csv")
    assert cells(table, "text") == ["one, two"]
    source = open_source(str(tmp_path), Reading(format="csv"))
    assert [cells(each, "text") for each in source.read("x.data")] == [["one, two"]]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 1 << 20])
def test_further_cells_are_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, at_once: int
) -> None:
    monkeypatch.setattr(delimited, "_READ_AT_ONCE", at_once)
    table = read(tmp_path, f'a\tone{end}b\t"two"\tx\ty{end}{end}c\tthree\t', **SETTINGS)
    assert table.names == ["id", "text"]
    assert cells(table, "id") == ["a", "b", "c"]
    assert cells(table, "text") == ["one", '"two"', "three"]
    assert table.notes == (f"{tmp_path}/x.csv: 2 rows have more than 2 columns; the further cells are left out.",)


def test_no_further_cells_need_no_note(tmp_path: Path) -> None:
    assert read(tmp_path, "a\tone\nb\ttwo\n", **SETTINGS).notes == ()
    table = read(tmp_path, "a\tone\nb\ttwo\tx\n", **SETTINGS)
    assert table.notes == (f"{tmp_path}/x.csv: 1 row has more than 2 columns; the further cells are left out.",)


def test_a_row_with_too_few_cells_is_refused_where_others_have_further_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 2: 1 column where there should be 2 columns \(id, text; "):
        read(tmp_path, "a\tone\tx\nb\n", **SETTINGS)


def test_without_dots_a_row_with_further_cells_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 2: 3 columns where there should be 2 columns"):
        read(tmp_path, TWO, format="tsv", columns=("id", "text"))


@pytest.mark.parametrize("settings", [{}, {"delimiter": "tab"}, {"format": "tsv", "delimiter": ";"}])
def test_further_cells_of_a_file_with_quotes_around_cells_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"data.columns ends with \.\.\., which is for files with tabs and without"):
        read(tmp_path, TWO, columns=("id", "text", "..."), **settings)


def test_a_very_long_row_with_further_cells_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "LONGEST_ROW", 1 << 16)
    monkeypatch.setattr(delimited, "_READ_AT_ONCE", 1 << 10)
    with pytest.raises(DataError, match="a row is longer than"):
        read(tmp_path, b"a\tone\nb\t" + b"x" * (1 << 18), **SETTINGS)
