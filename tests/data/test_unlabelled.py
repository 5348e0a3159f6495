"""Texts without labels: where they come from, what is left out of them, and that the labelled rows do not change."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdray.data.rows import SPLITS
from kdray.data.splits import Data, Splits, load_splits
from kdray.data.unlabelled import Unlabelled
from kdray.errors import DataError, SpecError
from kdray.sources.generated.mentions import GeneratedMentions
from kdray.sources.generated.moods import GeneratedMoods
from kdray.sources.generated.pairs import GeneratedPairs
from kdray.sources.generated.reviews import GeneratedReviews
from kdray.tasks.multi_label import MultiLabel
from kdray.tasks.regression import Regression
from kdray.tasks.task import Task
from kdray.tasks.text_classification import TextClassification
from kdray.tasks.token_classification import TokenClassification

ROWS = {"train_rows": 90, "validation_rows": 20, "test_rows": 20, "unlabelled_rows": 30}
TASKS: dict[str, tuple[Task, Any]] = {
    "text_classification": (TextClassification(), GeneratedReviews(**ROWS)),
    "token_classification": (TokenClassification(), GeneratedMentions(**ROWS)),
    "multi_label": (MultiLabel(label="labels"), GeneratedMoods(**ROWS)),
    "regression": (Regression(pair="pair", label="score"), GeneratedPairs(**ROWS)),
}
LABELLED = [{"text": f"plain film number {n}", "label": ("bad", "good")[n % 2]} for n in range(40)]


def write_rows(folder: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, some in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in some))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    others = {
        split: [{**row, "text": f"{row['text']} {split}"} for row in LABELLED] for split in ("validation", "test")
    }
    return write_rows(tmp_path / "labelled", {"train": LABELLED, **others})


def load(folder: Path, **settings: Any) -> Splits:
    return load_splits(Data(source=str(folder), **settings), TextClassification())


def texts(splits: Splits) -> list[str]:
    assert splits.unlabelled is not None
    return list(splits.unlabelled["text"])


def write_texts(path: Path, cells: Sequence[Any], column: str = "text") -> str:
    write_rows(path.parent, {path.name: [{column: cell} for cell in cells]})
    return str(path.with_suffix(".jsonl"))


@pytest.mark.parametrize("kind", TASKS)
def test_a_split_of_the_source_gives_texts_for_every_task(kind: str) -> None:
    task, source = TASKS[kind]
    splits = load_splits(Data(source=source, unlabelled="unlabelled"), task)
    without = load_splits(Data(source=source), task)
    assert splits.unlabelled is not None
    assert splits.unlabelled.column_names == splits.train.column_names
    assert splits.unlabelled.features["label"] == splits.train.features["label"]
    # The labelled rows, and so every fingerprint of them, are those of a sweep without such texts.
    assert (splits.key, without.more_key) == (without.key, None)
    assert splits.more_key is not None
    assert all(splits.content(split) == without.content(split) for split in SPLITS)
    assert min(splits.unlabelled["id"]) > max(splits.train["id"])
    train, more = ({str(row["text"]) for row in rows} for rows in (splits.train, splits.unlabelled))
    assert len(train & more) < (5 if kind == "regression" else 1)  # a pair is new if one of its texts is


@pytest.mark.parametrize("kind", TASKS)
def test_their_gold_is_no_answer_of_the_task(kind: str) -> None:
    task, source = TASKS[kind]
    splits = load_splits(Data(source=source, unlabelled="unlabelled"), task)
    assert splits.unlabelled is not None
    for words, gold in zip(splits.unlabelled["text"], splits.unlabelled["label"], strict=True):
        expected = {"token_classification": [-1] * len(words), "multi_label": None, "text_classification": -1}
        assert gold == expected[kind] if kind in expected else np.isnan(gold)


def test_another_source_may_have_other_columns_and_labels(folder: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "more", {"train": [{"body": "a new text", "label": {"is": "of no use"}}]})
    splits = load(folder, unlabelled=Unlabelled(source=str(source), text="body"))
    assert texts(splits) == ["a new text"]


def test_a_name_alone_is_read_as_the_labelled_rows_are(tmp_path: Path) -> None:
    lines = [f"text {n}\t{n % 2}\tx" for n in range(60)]
    path = tmp_path / "train.csv"
    path.write_text("\n".join(lines))
    more = tmp_path / "more" / "more.csv"
    more.parent.mkdir()
    more.write_text("another\t0\tx\nand another\t1\tx")
    settings = {"format": "tsv", "columns": "text,label,..."}
    splits = load_splits(Data(source=str(path), unlabelled=str(more), **settings), TextClassification())
    assert texts(splits) == ["another", "and another"]
    own = Unlabelled(source=str(more), format="tsv", columns="first,label,text")
    assert texts(load_splits(Data(source=str(path), unlabelled=own, **settings), TextClassification())) == ["x", "x"]


def test_rows_of_train_without_a_label_are_kept_if_texts_are_asked_for(folder: Path, tmp_path: Path) -> None:
    write_rows(folder, {"train": [*LABELLED, {"text": "nobody has read this", "label": None}]})
    with pytest.raises(DataError, match="row 41, column 'label': the cell is empty"):
        load(folder)
    kept = load(folder, keep_unlabelled=True)
    assert texts(kept) == ["nobody has read this"]
    assert not any("left out" in note for note in kept.notes)
    more = write_texts(tmp_path / "more", ["a new text"])
    assert texts(load(folder, unlabelled=more)) == ["a new text", "nobody has read this"]
    with pytest.raises(DataError, match="row 41, column 'label': the cell is empty"):
        load(folder, unlabelled=more, keep_unlabelled=False)


def test_without_that_wish_such_rows_are_left_out_where_the_task_allows_them(tmp_path: Path) -> None:
    rows = [{"text": f"row {n} of some", "label": n / 10} for n in range(40)]
    folder = write_rows(tmp_path, {"train": [*rows, {"text": "nobody has read this", "label": None}]})
    task = Regression()
    left_out = load_splits(Data(source=str(folder)), task)
    assert left_out.unlabelled is None
    assert any("1 of 41 rows have no label and are left out" in note for note in left_out.notes)
    assert texts(load_splits(Data(source=str(folder), keep_unlabelled=True), task)) == ["nobody has read this"]


def test_blank_texts_and_texts_of_the_measured_splits_are_left_out(folder: Path, tmp_path: Path) -> None:
    nearly = "Plain film number 4 test !"
    cells = ["a new text", " ", "\u200b", "Plain  FILM number 3 validation", nearly, "another new text"]
    splits = load(folder, unlabelled=write_texts(tmp_path / "more", cells))
    assert texts(splits) == ["a new text", "another new text"]
    assert any(note.startswith("2 of 6 texts without labels are blank") for note in splits.notes)
    assert any(note.startswith("1 of 4 texts without labels stand in validation or test") for note in splits.notes)
    (near,) = (note for note in splits.notes if "stand nearly in validation or test" in note)
    assert nearly in near
    assert "test: 'plain film number 4 test'" in near


def test_the_maximum_is_drawn_and_small_runs_have_few_texts(folder: Path, tmp_path: Path) -> None:
    more = write_texts(tmp_path / "more", [f"text {n} of several" for n in range(50)])
    everything = texts(load(folder, unlabelled=more))
    drawn = texts(load(folder, unlabelled=more, max_unlabelled=10))
    assert len(drawn) == 10
    assert drawn != everything[:10]
    assert [text for text in everything if text in drawn] == drawn
    assert texts(load(folder, unlabelled=more, max_unlabelled=10)) == drawn
    assert len(texts(load(folder, unlabelled=more, max_rows=8))) == 8


@pytest.mark.parametrize("kind", TASKS)
def test_all_but_a_few_rows_may_lose_their_labels(kind: str) -> None:
    task, source = TASKS[kind]
    whole = load_splits(Data(source=source), task)
    splits = load_splits(Data(source=source, max_labelled=24, unlabelled="unlabelled"), task)
    assert splits.unlabelled is not None
    assert len(splits.train) == 24
    given = load_splits(Data(source=source, unlabelled="unlabelled"), task).unlabelled
    assert given is not None
    labelled, others = list(splits.train["text"]), list(splits.unlabelled["text"])
    every_text = [*whole.train["text"], *given["text"]]
    # Rows that repeat a row of validation or test may be left out.
    assert len(whole.train) + len(given) - 6 <= len(labelled) + len(others) <= len(whole.train) + len(given)
    assert all(text in every_text for text in [*labelled, *others])
    assert splits.labels == whole.labels
    assert load_splits(Data(source=source, max_labelled=24, keep_unlabelled=False), task).unlabelled is None
    again = load_splits(Data(source=source, max_labelled=24, max_rows=10, unlabelled="unlabelled"), task)
    assert again.unlabelled is not None
    assert (len(again.train), len(again.unlabelled)) == (10, 10)


def test_few_labels_have_the_shares_of_all_and_more_than_all_change_nothing(folder: Path) -> None:
    few = load(folder, max_labelled=10)
    assert sorted(few.train["label"]) == 5 * [0] + 5 * [1]
    assert len(texts(few)) == 30
    everything = load(folder, max_labelled=1000)
    assert (everything.key, everything.unlabelled) == (load(folder).key, None)


@pytest.mark.parametrize(
    ("cells", "column", "message"),
    [
        (["a text"], "body", "no column 'text'"),
        ([], "text", "has no rows"),
        ([" ", "\t"], "text", "all 2 texts without labels are blank"),
        (["plain film number 1 test"], "text", "all 1 texts without labels stand in validation or test, or are blank"),
        ([["no", "text"]], "text", "row 1"),
    ],
)
def test_texts_that_cannot_be_used_are_refused(
    folder: Path, tmp_path: Path, cells: list[Any], column: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(folder, unlabelled=write_texts(tmp_path / "more", cells, column))


def test_a_missing_source_or_split_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load(folder, unlabelled="./nowhere")
    more = write_rows(tmp_path / "more", {"train": [{"text": "a"}]})
    with pytest.raises(DataError, match=r"no split 'extra' \(data.unlabelled.split\)"):
        load(folder, unlabelled=Unlabelled(source=str(more), split="extra"))
    with pytest.raises(SpecError, match="max_unlabelled"):
        Data(source="x", max_unlabelled=0)
