"""Files and folders as people have them: every kind gives the same rows, with a note for what was recognised."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdray.data.splits import Data, Splits, load_splits
from kdray.errors import DataError, SpecError
from kdray.sources.columnar import read_parquet
from kdray.sources.data_files import data_files_at
from kdray.sources.encodings import likely_encoding
from kdray.sources.memory import Budget
from kdray.tasks.text_classification import TextClassification
from tests.sources.kinds import (
    KINDS,
    ROWS,
    Kind,
    Rows,
    columns_without_names,
    csv_of,
    each_split,
    folder_for_each_split,
    lines_of,
    nested_parquet,
    objects,
    patterns,
    put,
    saved_by_datasets,
    semicolons,
    table_of,
    utf16_with_a_mark,
    windows_line_ends_and_a_mark,
    zipped,
)


def rows_of(splits: Splits, split: str) -> Rows:
    columns = splits.columns(split)
    return [(text, splits.labels[label]) for text, label in zip(columns["text"], columns["label"], strict=True)]


@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__)
def test_every_kind_gives_the_same_rows(tmp_path: Path, write: Kind) -> None:
    for folder in ("data", "plain"):
        (tmp_path / folder).mkdir()
    settings = {"source": str(tmp_path / "data"), **write(tmp_path / "data", ROWS)}
    task = settings.pop("task", TextClassification())
    splits = load_splits(Data(**settings), task)
    assert {split: rows_of(splits, split) for split in ROWS} == ROWS
    each_split(ROWS, lambda split, rows: put(tmp_path / "plain" / f"{split}.csv", csv_of(rows)))
    assert splits.key == load_splits(Data(source=str(tmp_path / "plain")), TextClassification()).key


def test_a_pattern_of_files_is_one_split_to_train_on(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / f"part-{number}.csv", csv_of(ROWS["train"][number * 8 : number * 8 + 8]))
    splits = load_splits(Data(source=f"{tmp_path}/part-*.csv", validation_fraction=0.25), TextClassification())
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 24
    with pytest.raises(DataError, match="no file has such a name"):
        load_splits(Data(source=f"{tmp_path}/no-*.csv"), TextClassification())


# Notes about what was recognised --------------------------------------------------------------------------------------


def notes_of(folder: Path, **settings: Any) -> str:
    return "\n".join(load_splits(Data(source=str(folder), **settings), TextClassification()).notes)


def test_what_is_recognised_is_a_note(tmp_path: Path) -> None:
    semicolons(tmp_path, ROWS)
    assert "train.csv: its columns are separated by ';'" in notes_of(tmp_path)
    utf16_with_a_mark(tmp_path, ROWS)
    assert "train.csv: read as utf-16, by its byte order mark" in notes_of(tmp_path)
    columns_without_names(tmp_path, ROWS)
    assert "train.csv: 2 columns have no name" in notes_of(tmp_path)
    windows_line_ends_and_a_mark(tmp_path, ROWS)
    assert "train.csv" not in notes_of(tmp_path)


def test_a_copy_in_another_form_is_not_read(tmp_path: Path) -> None:
    windows_line_ends_and_a_mark(tmp_path, ROWS)
    before = load_splits(Data(source=str(tmp_path)), TextClassification())
    put(tmp_path / "train.csv.gz", gzip.compress(csv_of(ROWS["test"])))
    put(tmp_path / "train.NDJSON", lines_of(ROWS["test"]))
    (tmp_path / "validation").mkdir()
    put(tmp_path / "validation" / "rows.csv", csv_of(ROWS["train"]))
    now = load_splits(Data(source=str(tmp_path)), TextClassification())
    assert now.key == before.key
    assert "train.csv.gz: is not read, because train.csv is there" in "\n".join(now.notes)


def test_files_and_folders_beside_each_other_are_splits(tmp_path: Path) -> None:
    folder_for_each_split(tmp_path, {"train": ROWS["train"]})
    put(tmp_path / "dev.csv", csv_of(ROWS["validation"]))
    put(tmp_path / "reviews.csv", csv_of(ROWS["test"]))
    put(tmp_path / "state.json", b"{}")
    splits = load_splits(Data(source=str(tmp_path)), TextClassification())
    assert rows_of(splits, "validation") == ROWS["validation"]
    assert len(splits.train) + len(splits.test) == 24
    other = load_splits(Data(source=str(tmp_path), train="reviews", test="train"), TextClassification())
    assert rows_of(other, "train") == ROWS["test"]


def test_a_missing_part_is_a_note(tmp_path: Path) -> None:
    each_split(ROWS, lambda split, rows: pq.write_table(table_of(rows), tmp_path / f"{split}-00000-of-00001.parquet"))
    assert "missing" not in notes_of(tmp_path)
    (tmp_path / "train-00000-of-00001.parquet").rename(tmp_path / "train-00001-of-00003.parquet")
    assert "split 'train' has 1 of 3 files; for example, number 00000 is missing" in notes_of(tmp_path)
    for number in (2, 3):
        pq.write_table(table_of(ROWS["train"]), tmp_path / f"train-{number:05d}-of-00003.parquet")
    assert "missing" not in notes_of(tmp_path)  # some programs count from 1
    (tmp_path / "train-00002-of-00003.parquet").unlink()
    assert "has 2 of 3 files; for example, number 00002 is missing" in notes_of(tmp_path)


# What is refused, and what the message says ---------------------------------------------------------------------------


def refusal(folder: Path, task: TextClassification | None = None, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_splits(Data(source=str(folder), **settings), task or TextClassification())
    return str(caught.value)


ENCODED = {
    "windows-1252": "Der Kaffee ist süß, und die Crème brûlée schmeckt köstlich. ¿Qué tal?",
    "windows-1251": "Фильм очень хороший, но сюжет показался мне слишком длинным",
    "shift_jis": "この映画はとても面白かったです。もう一度見たいと思います。",
    "euc_kr": "이 영화는 정말 재미있었습니다 다시 보고 싶어요",
    "gb18030": "这部电影非常好看我还想再看一遍演员的表演很精彩",
    "utf-16-le": "this film is good, and I would see it again",
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_the_message_for_a_wrong_encoding_names_the_likely_one(tmp_path: Path, encoding: str) -> None:
    text = ENCODED[encoding]
    assert likely_encoding(text.encode(encoding)) == encoding
    if encoding == "utf-16-le":
        return  # its zero bytes are UTF-8, so only a message about another byte names it
    rows = [(f"{text} {n}", ("bad", "good")[n % 2]) for n in range(40)]
    put(tmp_path / "train.csv", csv_of(rows).decode().encode(encoding))
    message = refusal(tmp_path)
    assert "row 1, column 'text': byte" in message
    assert f"perhaps {encoding} (data.encoding)" in message
    splits = load_splits(Data(source=str(tmp_path), encoding=encoding), TextClassification())
    assert all(text in row for row in splits.train["text"])
    put(tmp_path / "train.csv", json.dumps(objects(rows), ensure_ascii=False).encode(encoding))
    (tmp_path / "train.csv").rename(tmp_path / "train.json")
    assert f"perhaps {encoding}. Set data.encoding" in refusal(tmp_path)


def test_a_file_that_is_not_in_the_given_encoding(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", csv_of(ROWS["train"]))
    assert "train.csv: is not in ascii" in refusal(tmp_path, encoding="ascii")
    for encoding in ("nonsense", "hex", "zip", "../../x", ""):
        with pytest.raises(SpecError, match=r"Data\.encoding: got .* Examples: utf-8"):
            Data(source="x", encoding=encoding)


@pytest.mark.parametrize("delimiter", ["ab", "ä", '"', "\n"])
def test_a_delimiter_is_one_character(delimiter: str) -> None:
    with pytest.raises(SpecError, match=r"Data\.delimiter: got .* give one ASCII character"):
        Data(source="x", delimiter=delimiter)
    assert Data(source="x", delimiter="tab").delimiter == Data(source="x", delimiter="\\t").delimiter == "\t"


@pytest.mark.parametrize("content", [{"data": objects(ROWS["train"])}, {"a": {"data": objects(ROWS["train"])}}])
@pytest.mark.parametrize("indent", [None, 1])
def test_the_message_for_rows_below_a_key_names_it(tmp_path: Path, content: dict[str, Any], indent: int | None) -> None:
    put(tmp_path / "train.json", json.dumps(content, indent=indent).encode())
    name = "data" if "data" in content else "a.data"
    message = refusal(tmp_path)
    assert f"has rows below {name}: set data.field" in message or f"with rows below {name}: set data.field" in message
    assert f"no key 'rows' (data.field); Allowed: {name}" in refusal(tmp_path, field="rows")
    assert "is not a list of rows" in refusal(tmp_path, field=name.partition(".")[0]) if "." in name else True


def test_a_missing_field_of_a_nested_column(tmp_path: Path) -> None:
    nested_parquet(tmp_path, ROWS)
    message = refusal(tmp_path, TextClassification(text="a.review.text"))
    assert "no column 'a.review.text' (task.text)" in message
    assert "a.review.body" in message


def test_a_split_may_not_have_files_of_another_split(tmp_path: Path) -> None:
    patterns(tmp_path, ROWS)
    message = refusal(tmp_path, train="2024/*", validation="2024/a*", test=None)
    assert "data.train and data.validation name the same split '2024/a*'" in message
    assert "no split 'none/*.csv' (data.train)" in refusal(tmp_path, train="none/*.csv")


def test_a_file_that_a_saved_folder_lists_is_missing(tmp_path: Path) -> None:
    saved_by_datasets(tmp_path, ROWS)
    next((tmp_path / "train").glob("*00001*.arrow")).unlink()
    assert "is missing, but state.json lists it" in refusal(tmp_path)


def test_an_archive_without_data(tmp_path: Path) -> None:
    zipped("notes.md", b"x", tmp_path / "rows.zip")
    assert "rows.zip: holds no files to read" in refusal(tmp_path / "rows.zip")


class WatchedBudget(Budget):
    """Knows how much memory Arrow had at each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated: list[int] = []

    def use(self, size: int, where: str) -> None:
        self.allocated.append(pa.total_allocated_bytes())
        super().use(size, where)


def test_the_memory_for_a_parquet_file_does_not_grow_faster_than_its_rows(tmp_path: Path) -> None:
    """Arrow reads a row group batch by batch, each with a dictionary of all the different texts so far."""
    rows = [(f"the plot number {number} is good", "good") for number in range(60_000)]
    pq.write_table(table_of(rows), tmp_path / "train.parquet")
    budget = WatchedBudget()
    (file,) = data_files_at(tmp_path / "train.parquet")
    before = pa.total_allocated_bytes()
    table = read_parquet(file, budget)
    size = pa.total_allocated_bytes() - before
    assert table.columns["text"].to_pylist() == [text for text, _ in rows]
    assert budget.allocated[-1] - budget.allocated[0] < 3 * size
