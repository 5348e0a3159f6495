"""What is odd about the rows is said, with a count and an example; the rows stay as they are."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from kdray.data.splits import Data, Splits, load_splits
from kdray.errors import DataError
from kdray.tasks.text_classification import TextClassification

Rows = Sequence[tuple[str, str]]
TASK = TextClassification()


def rows_of(split: str, count: int = 24) -> list[tuple[str, str]]:
    return [(f"{split} {n}", ("bad", "good")[n % 2]) for n in range(count)]


def write(folder: Path, **splits: Rows) -> Path:
    """Write a tsv file for each split; those that are not given have 24 rows without anything odd."""
    for split in ("train", "validation", "test"):
        lines = [f"{text}\t{label}" for text, label in splits.get(split, rows_of(split))]
        (folder / f"{split}.tsv").write_text("\n".join(["text\tlabel", *lines, ""]), encoding="utf-8")
    return folder


def load(folder: Path, task: TextClassification = TASK) -> Splits:
    return load_splits(Data(source=str(folder)), task)


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(folder)
    return str(caught.value)


def test_nothing_odd_is_no_note(tmp_path: Path) -> None:
    assert load(write(tmp_path)).notes == ()


FINDINGS: dict[str, tuple[dict[str, Rows], str]] = {
    "in train and test": (
        {"test": [*rows_of("test"), ("train 3", "good"), ("train 4", "good")]},
        "test: 2 of 26 texts stand in train, too, for example 'train 3'; they are used, and make its figures",
    ),
    "in train and validation": (
        {"validation": [*rows_of("validation"), ("train 3", "good")]},
        "validation: 1 of 25 texts stand in train, too, for example 'train 3'",
    ),
    "in validation and test": (
        {"test": [*rows_of("test"), ("validation 3", "good")]},
        "test: 1 of 25 texts stand in validation, too, for example 'validation 3'",
    ),
    "several labels": (
        {"train": [*rows_of("train"), ("train 3", "bad"), ("train 3", "good")]},
        "train: 1 texts occur with several labels, in 3 of 26 rows, for example 'train 3' with 'bad', 'good'",
    ),
    "duplicates": (
        {"train": [*rows_of("train"), ("train 3", "good"), ("train 3", "good"), ("train 4", "bad")]},
        "train: 3 of 27 rows repeat an earlier row, for example 'train 3'; they are used",
    ),
    "blank": (
        {"test": [*rows_of("test"), ("\u200b \x07\u3000", "bad"), (" ", "good")]},
        "test: 2 of 26 texts are blank, for example '\\u200b \\x07\\u3000'; they are used",
    ),
    "case": (
        {"train": [*rows_of("train"), *[(f"more {n}", "Good") for n in range(5)]]},
        "1 groups of labels differ only in case, spaces or Unicode form, for example 'Good', 'good'",
    ),
    "Unicode form": (
        {"train": [*rows_of("train"), *[(f"m {n}", ("caf\u00e9", "cafe\u0301", "x")[n % 3]) for n in range(9)]]},
        "1 groups of labels differ only in case, spaces or Unicode form, for example 'cafe\u0301', 'caf\u00e9'",
    ),
    "missing value": (
        {"train": [*rows_of("train"), *[(f"m {n}", ("NaN", "None", "N/A")[n % 3]) for n in range(9)]]},
        "3 of 5 labels look like missing values: 'N/A', 'NaN', 'None'; each is a label of its own",
    ),
    "one row": (
        {"train": [*rows_of("train"), ("odd one", "odd"), ("rare a", "rare"), ("rare b", "rare")]},
        "2 of 4 labels have at most 2 rows in all splits together: 'odd', 'rare'; too few to learn or to measure",
    ),
    "absent": (
        {"train": [*rows_of("train"), *[(f"more {n}", "new") for n in range(5)]]},
        "validation: 1 of 3 labels have no rows: 'new'; its figures say nothing about them",
    ),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_an_oddity_is_a_note_with_count_and_example(tmp_path: Path, name: str) -> None:
    files, expected = FINDINGS[name]
    splits = load(write(tmp_path, **files))
    assert [note for note in splits.notes if note.startswith(expected)], splits.notes
    counts = {split: len(files.get(split, rows_of(split))) for split in ("train", "validation", "test")}
    assert {split: len(splits.columns(split)["id"]) for split in counts} == counts


def test_the_notes_stay_few_and_short(tmp_path: Path) -> None:
    rows = [("x" * 500, f"label {n:03d} {'y' * 90}") for n in range(300)] + rows_of("train")
    notes = load(write(tmp_path, train=rows)).notes
    assert len(notes) <= 6
    assert max(map(len, notes)) < 700
    assert any("and 295 more" in note for note in notes)


def test_pairs_are_compared_as_pairs(tmp_path: Path) -> None:
    lines = ["text\tother\tlabel", *(f"same\tother {n}\t{('x', 'y')[n % 2]}" for n in range(24))]
    for split, shift in (("train", 0), ("dev", 100), ("test", 200)):
        text = "\n".join(line.replace("other ", f"other {shift}") for line in lines)
        (tmp_path / f"{split}.tsv").write_text(text + "\n")
    assert load(tmp_path, TextClassification(pair="other")).notes == ()
    notes = "\n".join(load(tmp_path, TextClassification(text="other")).notes)
    assert notes == ""


def test_rows_that_all_stand_in_train_are_refused(tmp_path: Path) -> None:
    for split in ("validation", "test"):
        message = refusal(write(tmp_path, **{split: rows_of("train")}))
        assert f"{split}: all its 24 rows stand in train, too" in message
        assert f"data.{split}" in message
    # A few short rows may repeat rows of train by chance.
    assert load(write(tmp_path, test=rows_of("train", 6)))


def test_blank_texts_only_are_refused(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, train=[("\u200b", "bad"), (" ", "good")]))
    assert "train: none of its 2 texts has a letter or a sign. Check task.text." in message


def test_texts_that_all_have_several_labels_are_refused(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, train=[(f"{n // 2}", ("bad", "good")[n % 2]) for n in range(20)]))
    assert "each of its texts occurs with several labels, so nothing can be learnt" in message


def test_the_message_for_a_label_with_one_row_names_it(tmp_path: Path) -> None:
    lines = ["text\tlabel", *(f"text {n}\tbad" for n in range(999)), "odd one\todd"]
    (tmp_path / "rows.tsv").write_text("\n".join(lines))
    message = refusal(tmp_path / "rows.tsv")
    assert "of train's 1000 rows, only one has the label 'odd'" in message
    assert "too few" not in message
    lines = ["text\tlabel", *(f"text {n}\tbad" for n in range(998)), "odd one\todd", "odd two\todd"]
    (tmp_path / "rows.tsv").write_text("\n".join(lines))
    assert "of train's 900 rows, only one has the label 'odd'" in refusal(tmp_path / "rows.tsv")


def test_the_notes_do_not_change_the_rows_or_their_key(tmp_path: Path) -> None:
    """The fingerprint of these rows in version 0.1: a sweep of that version continues with them."""
    rows = [*rows_of("train"), ("train 3", "bad"), ("train 3", "good"), (" ", "Good"), ("test 1", "Good")]
    splits = load(write(tmp_path, train=rows))
    assert len(splits.notes) >= 5
    assert splits.key == "d08095348a5d173d"
    assert [(text, splits.labels[n]) for text, n in zip(splits.train["text"], splits.train["label"], strict=True)] == [
        *rows
    ]
