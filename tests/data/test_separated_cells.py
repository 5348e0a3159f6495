"""Texts with several labels and a separator: the labels of each row, what is noted, and what is refused."""

import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdray.data.separated_cells import SeparatedColumn, separated_column
from kdray.errors import DataError
from kdray.sources.opening import open_source
from kdray.sources.reading import Reading
from kdray.sources.tables import Table

CELLS = [" joy,fear ,joy", None, "", "fear", "a b ,,c,"]
LABELS = [["joy", "fear"], [], [], ["fear"], ["a b", "c"]]


def read(cells: Any, separator: str = ",") -> SeparatedColumn:
    column = cells if isinstance(cells, list | pa.ChunkedArray) else pa.chunked_array([cells])
    return separated_column(Table("moods.csv", {"moods": column}), "moods", separator, "task.label")


def names(column: SeparatedColumn) -> list[list[str]]:
    """The labels of each row."""
    labels = column.labels
    starts = labels.starts.tolist()
    return [[labels.by_code[code] for code in labels.codes[start:end]] for start, end in itertools.pairwise(starts)]


@pytest.mark.parametrize(
    "column",
    [
        CELLS,
        pa.array(CELLS),
        pa.array(CELLS, pa.large_string()),
        pa.array(CELLS).cast(pa.string_view()),
        pa.array([None if cell is None else cell.encode() for cell in CELLS], pa.large_binary()),
        pa.array(CELLS).dictionary_encode(),
        pa.chunked_array([CELLS[:2], CELLS[2:]]),
    ],
    ids=lambda column: "list" if isinstance(column, list) else str(column.type),
)
def test_labels_are_read_from_every_kind_of_column(column: Any) -> None:
    result = read(column)
    assert names(result) == LABELS
    assert result.has_separator
    assert not result.labels.missing({}).any()
    assert result.notes == (
        "moods.csv, column 'moods': empty names between separators, left out: 2, for example in row 5, 'a b ,,c,'.",
        "moods.csv, column 'moods': names that their row has twice, counted once: 1, for example in row 1, "
        "' joy,fear ,joy'.",
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.none() | st.text("ab ,;\u00a0\u2003\n", max_size=9), max_size=6), st.sampled_from([",", ";", ", "]))
def test_labels_equal_those_that_python_splits(cells: list[str | None], separator: str) -> None:
    pieces = [[name.strip() for name in (cell or "").split(separator)] for cell in cells]
    result = read(cells, separator)
    assert names(result) == [list(dict.fromkeys(name for name in row if name)) for row in pieces]
    assert result.has_separator == any(separator in (cell or "") for cell in cells)
    doubled = sum(len(named) - len(set(named)) for named in ([name for name in row if name] for row in pieces))
    assert any(f"counted once: {doubled}," in note for note in result.notes) == bool(doubled)


def test_a_separator_that_never_occurs_is_reported() -> None:
    result = read(["joy;fear", "joy"])
    assert not result.has_separator
    assert names(result) == [["joy;fear"], ["joy"]]
    assert not read(pa.nulls(2)).has_separator


def test_several_spaces_between_names_are_no_empty_names() -> None:
    result = read(["joy  fear", " awe "], " ")
    assert names(result) == [["joy", "fear"], ["awe"]]
    assert result.notes == ()


def test_a_separator_is_no_pattern() -> None:
    assert names(read(["a|b", "a.b"], "|")) == [["a", "b"], ["a.b"]]
    assert names(read(["a||b|c"], "||")) == [["a", "b|c"]]


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        (["a,b", 3], "row 2, column 'moods': 3 is not a text"),
        (["a,b", ["a"]], r"row 2, column 'moods': \['a'\] is not a text"),
        (pa.array([b"a,b", b"\xff"]), "row 2, column 'moods': byte 0xff is not UTF-8"),
        (pa.array([1, 2]), "row 1, column 'moods': 1 is not a text"),
        (pa.array([["a"], ["b"]]), r"row 1, column 'moods': \['a'\] is not a text"),
    ],
)
def test_a_cell_that_is_no_text_is_refused_with_its_row(cells: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=f"moods.csv, {sentence}"):
        read(cells)


def test_a_missing_column_is_refused_with_the_setting() -> None:
    with pytest.raises(DataError, match=r"no column 'mood' \(task.label\); did you mean 'moods'"):
        separated_column(Table("moods.csv", {"moods": ["a"]}), "mood", ",", "task.label")


def test_labels_of_a_csv_file(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("text\tmoods\na\t2,27\nb\t\nc\t2\n")
    (table,) = open_source(str(tmp_path), Reading(), None, None).read("train")
    assert names(separated_column(table, "moods", ",", "task.label")) == [["2", "27"], [], ["2"]]
