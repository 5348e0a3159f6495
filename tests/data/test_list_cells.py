"""Columns of lists: texts or whole numbers, whatever the format; each wrong cell is named with its place."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdray.data.list_cells import ListColumn, list_column, word_column
from kdray.errors import DataError
from kdray.sources.opening import open_source, read_file
from kdray.sources.reading import Reading
from kdray.sources.tables import Table

WORDS = [["naïve", "b"], [], ["日本", "", "c"]]
NUMBERS = [[3, 0], [], [1, -100, 2]]


def rows_of(column: ListColumn) -> list[list[Any]]:
    values = column.values.to_pylist()
    return [values[start:end] for start, end in zip(column.starts[:-1], column.starts[1:], strict=True)]


def table_of(cells: Any, kind: pa.DataType | None = None) -> Table:
    """A table with a column of Python values, or of two Arrow chunks of this type."""
    if kind is None:
        return Table("x.json", {"words": cells})
    chunks = [pa.array(some, kind) for some in (cells[:1], cells[1:])]
    return Table("x.parquet", {"words": pa.chunked_array(chunks, kind)})


TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string()))
KINDS = [None, *(list_of(kind) for kind in TEXT_TYPES for list_of in (pa.list_, pa.large_list))]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_lists_of_texts(kind: pa.DataType | None) -> None:
    cells = [[each.encode() for each in cell] for cell in WORDS] if kind and "binary" in str(kind) else WORDS
    column = word_column(table_of(cells, kind), "words", "task.text")
    assert rows_of(column) == WORDS
    assert column.has_texts
    assert not column.absent.any()
    assert [column.place_of(number) for number in range(5)] == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]


@pytest.mark.parametrize(
    "kind", [None, pa.list_(pa.int64()), pa.list_(pa.int8()), pa.large_list(pa.float32())], ids=str
)
def test_lists_of_whole_numbers(kind: pa.DataType | None) -> None:
    column = list_column(table_of(NUMBERS, kind), "words", "task.label")
    assert rows_of(column) == NUMBERS
    assert not column.has_texts


@pytest.mark.parametrize("kind", [None, pa.list_(pa.string()), pa.large_list(pa.int64()), pa.list_(pa.null())], ids=str)
def test_empty_and_absent_lists(kind: pa.DataType | None) -> None:
    column = list_column(table_of([[], None, []], kind), "words", "task.label", may_be_absent=True)
    assert rows_of(column) == [[], [], []]
    assert column.absent.tolist() == [False, True, False]
    assert len(list_column(table_of([], kind), "words", "task.label")) == 0


def test_lists_of_a_fixed_size_and_nulls_over_hidden_values() -> None:
    fixed = table_of([["a", "b"], None, ["c", "d"]], pa.list_(pa.string(), 2))
    assert rows_of(list_column(fixed, "words", "task.text", may_be_absent=True)) == [["a", "b"], [], ["c", "d"]]
    # A null may lie over items that are no part of the data.
    hidden = pa.ListArray.from_arrays(pa.array([0, 2, 3]), pa.array(["a", "b", "c"]), mask=pa.array([False, True]))
    column = list_column(Table("x", {"words": pa.chunked_array([hidden])}), "words", "task.text", may_be_absent=True)
    assert rows_of(column) == [["a", "b"], []]
    sliced = Table("x", {"words": pa.chunked_array([pa.array(WORDS).slice(2)])})
    assert rows_of(word_column(sliced, "words", "task.text")) == [["日本", "", "c"]]


JSON_FAULTS = [
    ([["a"], None], "row 2, column 'words': the cell is empty \\(null\\); every cell must hold a list"),
    ([["a"], ["b", None]], "row 2, column 'words': item 2 of the list: it is empty \\(null\\)"),
    ([[], [["b"]]], r"row 2, column 'words': item 1 of the list: \['b'\] is a list in a list"),
    ([[1, 2], [3, 4.5]], "row 2, column 'words': item 2 of the list: 4.5 is neither a text nor a whole number"),
    ([[1, float("nan")]], "row 1, column 'words': item 2 of the list: nan is neither"),
    ([[True]], "row 1, column 'words': item 1 of the list: True is neither"),
]
PYTHON_FAULTS = [
    *JSON_FAULTS,
    (
        [["a"], "['b', 'c']"],
        r"row 2, column 'words': \"\['b', 'c'\]\" is a text and is not read as a list; .* JSON lines",
    ),
    ([["a"], "b c"], "row 2, column 'words': 'b c' is a text, not a list; .* give the rows as JSON lines or Parquet"),
    ([["a"], [["b"]]], r"row 2, column 'words': item 1 of the list: \['b'\] is a list in a list"),
    ([["a"], {"b": 1}], r"row 2, column 'words': \{'b': 1\} is not a list"),
    ([["a"], 3], "row 2, column 'words': 3 is not a list"),
    ([["a"], ["b", 3]], "row 2, column 'words': item 2 of the list: 3 is of another kind than 'a', the first item"),
    ([[1], [], [2, "b"]], "row 3, column 'words': item 2 of the list: 'b' is of another kind than 1"),
    ([["a"], [{"b": 1}]], "row 2, column 'words': item 1 of the list: {'b': 1} is neither"),
    ([["a", "\ud800"]], "row 1, column 'words': item 2 of the list: .* half a character"),
]


@pytest.mark.parametrize(("cells", "problem"), PYTHON_FAULTS)
def test_a_wrong_cell_of_json_is_named(cells: list[Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        list_column(table_of(cells), "words", "task.text")


@pytest.mark.parametrize(("cells", "problem"), JSON_FAULTS)
def test_a_wrong_cell_of_arrow_is_named(cells: list[Any], problem: str) -> None:
    kind = pa.array(cells).type
    with pytest.raises(DataError, match=problem):
        list_column(table_of(cells, kind), "words", "task.text")


@pytest.mark.parametrize(
    ("cells", "kind", "problem"),
    [
        ([["a"], [b"\xe4b"]], pa.list_(pa.binary()), "row 2, .* item 1 of the list: byte 0xe4 is not UTF-8"),
        (["a b", "['b']"], pa.string(), "row 1, column 'words': 'a b' is a text, not a list"),
        ([b"[1]"], pa.large_binary(), r"row 1, column 'words': '\[1\]' is a text and is not read as a list"),
        ([{"a": 1}], pa.struct({"a": pa.int64()}), r"row 1, .*\{'a': 1\} is not a list"),
        ([[2**63]], pa.list_(pa.uint64()), "row 1, .* item 1 of the list: 9223372036854775808 is neither"),
    ],
)
def test_a_wrong_type_of_arrow_is_named(cells: list[Any], kind: pa.DataType, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        list_column(table_of(cells, kind), "words", "task.text")


def test_a_text_in_a_list_that_is_not_utf8_is_named() -> None:
    """Arrow does not check strings that it reads from a file."""
    unchecked = pa.array([b"a", b"\xe4b"]).view(pa.string())
    column = pa.chunked_array([pa.ListArray.from_arrays(pa.array([0, 1, 2]), unchecked)])
    with pytest.raises(DataError, match="row 2, column 'words': item 1 of the list: byte 0xe4 is not UTF-8"):
        word_column(Table("x.parquet", {"words": column}), "words", "task.text")


def test_numbers_are_no_words() -> None:
    with pytest.raises(DataError, match="row 2, column 'words': item 1 of the list is the number 3, not a word"):
        word_column(table_of([[], [3]]), "words", "task.text")
    with pytest.raises(DataError, match=r"no column 'tokens' \(task.text\); .*Allowed: words"):
        word_column(table_of([["a"]]), "tokens", "task.text")


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "arrow"])
def test_lists_are_read_from_files(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    rows = [{"words": words, "tags": numbers} for words, numbers in zip(WORDS, NUMBERS, strict=True)]
    if ending == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1)  # a dictionary of texts for each group
    else:
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    table = read_file(path, Reading())
    assert rows_of(word_column(table, "words", "task.text")) == WORDS
    assert rows_of(list_column(table, "tags", "task.label")) == NUMBERS


@pytest.mark.parametrize("groups", [1, 3])
def test_lists_need_as_much_memory_as_their_texts(tmp_path: Path, groups: int) -> None:
    """In Parquet a text that occurs often is stored once, also in lists; the limit is about the texts as read."""
    rows = pa.table({"words": [["x" * 1000] * 20] * 90})
    pq.write_table(rows, tmp_path / "x.parquet", row_group_size=90 // groups)
    assert (tmp_path / "x.parquet").stat().st_size < 20_000
    assert len(read_file(tmp_path / "x.parquet", Reading(max_gb=0.0019)).columns["words"]) == 90
    with pytest.raises(DataError, match=r"x.parquet: unpacked, the rows need more than"):
        read_file(tmp_path / "x.parquet", Reading(max_gb=0.0017))
    (tmp_path / "y.parquet").write_bytes((tmp_path / "x.parquet").read_bytes())
    assert len(open_source(f"{tmp_path}/*.parquet", Reading(max_gb=0.0038)).read("train")) == 2
    with pytest.raises(DataError, match=r"y.parquet: unpacked, the rows need more than"):
        open_source(f"{tmp_path}/*.parquet", Reading(max_gb=0.0034)).read("train")


def test_names_of_numbers_in_lists(tmp_path: Path) -> None:
    """Hugging Face `datasets` writes the names of a ClassLabel in lists, too, in two forms."""
    names = ["O", "B-per", "I-per"]
    label = datasets.ClassLabel(names=names)
    features = datasets.Features({"words": datasets.List(datasets.Value("string")), "tags": datasets.List(label)})
    data = datasets.Dataset.from_dict({"words": WORDS, "tags": [[1, 0], [], [1, 2, 2]]}, features=features)
    data.to_parquet(tmp_path / "new.parquet")
    assert read_file(tmp_path / "new.parquet", Reading()).class_names == {"tags": tuple(names)}
    table = pq.read_table(tmp_path / "new.parquet")
    sequence = {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "Sequence"}
    for feature in (sequence, {**sequence, "_type": "LargeList"}, [sequence["feature"]]):
        metadata = {"huggingface": json.dumps({"info": {"features": {"tags": feature}}})}
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "old.parquet")
        assert read_file(tmp_path / "old.parquet", Reading()).class_names == {"tags": tuple(names)}
