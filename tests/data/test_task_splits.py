"""The splits of taggers, of several labels and of numbers: what is refused, with file and row, and what is noted.

`test_splits` and `test_findings` have the same for text classification; single cells are tested with their readers.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kdray.data.cuts import draw_rows
from kdray.data.gold import rows_of_labels
from kdray.data.splits import Data, Splits, load_splits
from kdray.data.tokens import tokenise
from kdray.data.truncation import describe_truncation
from kdray.errors import DataError
from kdray.models.fresh import word_tokenizer
from kdray.sources.generated.mentions import GeneratedMentions
from kdray.sources.generated.moods import GeneratedMoods
from kdray.sources.generated.pairs import GeneratedPairs
from kdray.storage.paths import StoragePaths
from kdray.tasks.multi_label import MultiLabel
from kdray.tasks.regression import Regression
from kdray.tasks.task import Task
from kdray.tasks.text_classification import TextClassification
from kdray.tasks.token_classification import TokenClassification

Rows = Sequence[dict[str, Any]]
TAGGER, SETS, NUMBERS = TokenClassification(), MultiLabel(label="labels"), Regression(label="score")
COLUMNS = MultiLabel(label=("sad", "glad"))
SEPARATED = MultiLabel(label="labels", separator="|")


def words(count: int = 40, name: str = "row") -> list[dict[str, Any]]:
    tags = (["B-per", "O", "B-loc", "I-loc"], ["O", "O", "O", "B-loc"])
    return [{"tokens": ["Ann", f"{name} {n}", "New", "York"], "tags": tags[n % 2]} for n in range(count)]


def spans(count: int = 40) -> list[dict[str, Any]]:
    given = {"start": 0, "end": 3, "label": "per"}
    return [{"tokens": f"Ann lives in Rome {n}", "tags": [given] if n % 2 else []} for n in range(count)]


def sets(count: int = 60, name: str = "row") -> list[dict[str, Any]]:
    labels: list[list[str]] = [["a"], ["a", "b"], [], ["c"]]
    return [{"text": f"{name} {n}", "labels": labels[n % 4]} for n in range(count)]


def columns(count: int = 60) -> list[dict[str, Any]]:
    return [{"text": f"row {n}", "sad": n % 2, "glad": int(n % 3 == 0)} for n in range(count)]


def separated(count: int = 60) -> list[dict[str, Any]]:
    return [{"text": f"row {n}", "labels": ("a", "a|b", "b", "c")[n % 4]} for n in range(count)]


def numbers(count: int = 60, name: str = "row") -> list[dict[str, Any]]:
    return [{"text": f"{name} {n}", "score": n / 2} for n in range(count)]


def write(folder: Path, **splits: Rows) -> Path:
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def load(folder: Path, task: Task, **splits: Rows) -> Splits:
    return load_splits(Data(source=str(write(folder, **splits))), task)


def refusal(folder: Path, task: Task, **splits: Rows) -> str:
    with pytest.raises(DataError) as caught:
        load(folder, task, **splits)
    return str(caught.value)


def span(start: Any, end: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"start": start, "end": end, "label": "per"} | more]


WRONG_ROWS: dict[str, tuple[Task, Rows, dict[str, Any], tuple[str, ...]]] = {
    "tags and words of different numbers": (
        TAGGER,
        words(),
        {"tokens": ["a", "b", "c"], "tags": ["O", "O"]},
        ("2 tags for 3 words", "column 'tags'"),
    ),
    "a tag outside of the scheme": (
        TAGGER,
        words(),
        {"tokens": ["a", "b"], "tags": ["O", "X-per"]},
        ("'X-per' has the prefix X-", "scheme BIO"),
    ),
    "a tag without a type": (TAGGER, words(), {"tokens": ["a"], "tags": ["B-"]}, ("'B-' has no type",)),
    "names and numbers as tags": (TAGGER, words(), {"tokens": ["a", "b"], "tags": ["O", 1]}, ("of another kind",)),
    "a word that is none": (TAGGER, words(), {"tokens": ["a", 5], "tags": ["O", "O"]}, ("column 'tokens'",)),
    "an empty span": (TAGGER, spans(), {"tokens": "Ann lives", "tags": span(3, 3)}, ("is empty",)),
    "a span beyond the text": (TAGGER, spans(), {"tokens": "Ann lives", "tags": span(4, 99)}, ("9 characters",)),
    "a span that begins inside a word": (
        TAGGER,
        spans(),
        {"tokens": "Ann lives", "tags": span(1, 3)},
        ("begins inside the word 'Ann'",),
    ),
    "a span that ends inside a word": (
        TAGGER,
        spans(),
        {"tokens": "Ann lives", "tags": span(4, 6)},
        ("ends inside the word 'lives'",),
    ),
    "spans that overlap": (
        TAGGER,
        spans(),
        {"tokens": "Ann lives", "tags": [*span(0, 9), *span(4, 9)]},
        ("overlap",),
    ),
    "a span that is no object": (TAGGER, spans(), {"tokens": "Ann", "tags": ["B-per"]}, ("is not an object",)),
    "a label that is no list": (SETS, sets(), {"text": "x", "labels": "a"}, ("'a' is a text, not a list",)),
    "names and numbers as labels": (SETS, sets(), {"text": "x", "labels": ["a", 2]}, ("of another kind",)),
    "a 2 in a 0/1 column": (
        COLUMNS,
        columns(),
        {"text": "x", "sad": 2, "glad": 0},
        ("2 is neither 0 nor 1", "column 'sad'"),
    ),
    "nan": (NUMBERS, numbers(), {"text": "x", "score": "nan"}, ("'nan' is not a", "column 'score'")),
    "infinity": (NUMBERS, numbers(), {"text": "x", "score": float("inf")}, ("not a finite number",)),
    "a text as a number": (NUMBERS, numbers(), {"text": "x", "score": "good"}, ("'good' is not a number",)),
    "a truth value as a number": (NUMBERS, numbers(), {"text": "x", "score": True}, ("truth value",)),
    "a number outside of the range": (
        Regression(label="score", range=(0, 50)),
        numbers(),
        {"text": "x", "score": 51},
        ("0 to 50 (task.range)",),
    ),
}


@pytest.mark.parametrize("name", WRONG_ROWS)
def test_a_wrong_row_is_refused_with_file_row_and_remedy(name: str, tmp_path: Path) -> None:
    task, rows, wrong, expected = WRONG_ROWS[name]
    message = refusal(tmp_path, task, train=[*rows, wrong])
    assert f"train.jsonl, row {len(rows) + 1}" in message
    assert all(part in message for part in expected), message
    assert "Correct" in message


@pytest.mark.parametrize(
    ("task", "rows", "unknown", "label"),
    [
        (TAGGER, words(), {"tokens": ["a"], "tags": ["B-org"]}, "B-org"),
        (SETS, sets(), {"text": "x", "labels": ["a", "q"]}, "q"),
        (SEPARATED, separated(), {"text": "x", "labels": "a|q"}, "q"),
    ],
)
def test_a_label_that_train_lacks_is_refused(
    task: Task, rows: Rows, unknown: dict[str, Any], label: str, tmp_path: Path
) -> None:
    message = refusal(tmp_path, task, train=rows, validation=[*rows[:7], unknown])
    assert f"validation.jsonl, row 8: label '{label}' is neither in task.labels nor in train" in message


@pytest.mark.parametrize(
    ("task", "rows", "expected"),
    [
        (NUMBERS, [{"text": f"x {n}", "score": 3} for n in range(40)], "all 40 rows have the number 3.0; at least two"),
        (NUMBERS, [{"text": f"x {n}", "score": None} for n in range(40)], "none of its 40 rows has a label"),
        (SETS, [{"text": f"x {n}", "labels": ["a", "b"]} for n in range(40)], "all 40 rows have the labels ['a', 'b']"),
        (SETS, [{"text": f"x {n}", "labels": []} for n in range(40)], "no row has a label; at least two are needed"),
        (SETS, [{"text": f"x {n}", "labels": ["a"][n % 2 :]} for n in range(40)], "'a' is the only label"),
        (SEPARATED, [{"text": f"x {n}", "labels": "ab"[n % 2]} for n in range(40)], "no cell has the separator '|'"),
        (TAGGER, [{"tokens": ["a", str(n)], "tags": ["O", "O"]} for n in range(40)], "all 80 words have the tag 'O'"),
        (TAGGER, [{"tokens": [], "tags": []} for n in range(40)], "no word has a tag"),
        (TAGGER, [{"tokens": ["a"], "tags": ["NOUN", "VERB"][n % 2 :][:1]} for n in range(40)], "task.scheme=plain"),
    ],
)
def test_data_that_no_model_learns_from_are_refused(task: Task, rows: Rows, expected: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, task, train=rows)
    assert expected in message
    assert "train.jsonl" in message
    assert "task." in message


def test_a_validation_split_without_labels_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, SETS, train=sets(), validation=[{"text": f"v {n}", "labels": []} for n in range(9)])
    assert "validation.jsonl: none of its 9 rows has a label (task.label)" in message
    rows = [{"tokens": ["a", f"{n}"], "tags": ["O", "O"]} for n in range(9)]
    message = refusal(tmp_path, TAGGER, train=words(), validation=rows)
    assert "validation.jsonl: all 18 words have the tag 'O'" in message


def test_numbers_of_tags_need_names_and_the_right_ones(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", f"{n}"], "tags": [0, n % 4]} for n in range(40)]
    assert "numbers need their names (task.labels)" in refusal(tmp_path, TAGGER, train=rows)
    named = TokenClassification(labels=("O", "B-x", "I-x"))
    assert "row 4: tag '3' has no name (task.labels)" in refusal(tmp_path, named, train=rows)
    splits = load(tmp_path, named, train=[row for row in rows if 3 not in row["tags"]])
    assert splits.labels == ("O", "B-x", "I-x")
    assert {tuple(tags) for tags in splits.train["label"]} == {(0, 0), (0, 1), (0, 2)}


def test_a_scheme_that_is_not_that_of_the_data_is_refused(tmp_path: Path) -> None:
    rows = [*words(), {"tokens": ["a", "b"], "tags": ["O", "L-per"]}]
    message = refusal(tmp_path, TokenClassification(scheme="BIOES"), train=rows)
    assert "row 41: tag 'L-per' has the prefix L-; the other tags are in the scheme BIOES" in message
    assert "say the scheme (task.scheme)" in message


def test_tagged_rows_may_all_have_the_same_tags(tmp_path: Path) -> None:
    """Each word is an answer, so equal rows of different words are something to learn from."""
    rows = [{"tokens": ["Ann", f"row {n}"], "tags": ["B-per", "O"]} for n in range(40)]
    splits = load(tmp_path, TAGGER, train=rows)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (32, 4, 4)


@pytest.mark.parametrize("score_range", [None, (0, 50)])
def test_a_test_split_of_secret_numbers_is_not_used(score_range: tuple[float, float] | None, tmp_path: Path) -> None:
    """The test splits of GLUE have -1 everywhere, also for similarities from 0 to 5."""
    secret = [{"text": f"secret {n}", "score": -1} for n in range(9)]
    splits = load(tmp_path, Regression(label="score", range=score_range), train=numbers(), test=secret)
    assert any("test.jsonl: its rows have no labels, so it is not used." in note for note in splits.notes)
    assert min(splits.test["label"]) >= 0


def test_minus_one_is_a_number_like_any_other_where_train_has_it(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}", "score": n % 5 - 2} for n in range(60)]
    splits = load(tmp_path, NUMBERS, train=rows, test=[{"text": f"t {n}", "score": -1} for n in range(9)])
    assert list(splits.test["label"]) == [-1] * 9


# Notes ----------------------------------------------------------------------------------------------------------------


def notes_of(splits: Splits, beginning: str) -> list[str]:
    return [note for note in splits.notes if beginning in note]


def test_tags_at_impossible_places_are_noted_for_every_split(tmp_path: Path) -> None:
    wrong = {"tokens": ["x", "York"], "tags": ["O", "I-loc"]}
    splits = load(
        tmp_path, TAGGER, train=[*words(), wrong], validation=[*words(9, "v"), wrong, wrong], test=words(9, "t")
    )
    counted = {split: notes_of(splits, f"{split}.jsonl: ") for split in ("train", "validation", "test")}
    assert "1 of 41 sentences have a tag that BIO does not allow at its place, such as I-loc" in counted["train"][0]
    assert "2 of 11 sentences have a tag that BIO does not allow at its place" in counted["validation"][0]
    assert "directly behind O (row 10, word 2)" in counted["validation"][0]
    assert counted["test"] == []


def test_the_scheme_the_types_and_the_range_are_noted(tmp_path: Path) -> None:
    note = load(tmp_path, TAGGER, train=words()).notes[0]
    assert note == "train: tags of the scheme BIO for 2 types: loc, per."
    (note,) = notes_of(load(tmp_path, NUMBERS, train=numbers()), "numbers from")
    assert note == "train: numbers from 0 to 29.5, mean 14.75."


@pytest.mark.parametrize(
    ("task", "rows", "more", "expected"),
    [
        (
            NUMBERS,
            numbers(),
            {"text": "row 3", "score": 9},
            "1 texts occur with different numbers, in 2 of 61 rows, for example 'row 3' with 1.5, 9.0; they are used.",
        ),
        (
            SETS,
            sets(),
            {"text": "row 1", "labels": ["c"]},
            "1 texts occur with different labels, in 2 of 61 rows, for example 'row 1' with ['a', 'b'], ['c']; they",
        ),
        (
            TAGGER,
            words(),
            {"tokens": ["Ann", "row 0", "New", "York"], "tags": ["O", "O", "O", "O"]},
            "1 texts occur with different tags, in 2 of 41 rows, for example 'Ann row 0 New York' with ['O', 'O'",
        ),
    ],
)
def test_contradictions_are_noted(task: Task, rows: Rows, more: dict[str, Any], expected: str, tmp_path: Path) -> None:
    """The two rows may be cut off for validation, so the other splits are given."""
    other = {TAGGER: words(9, "v"), SETS: sets(9, "v"), NUMBERS: numbers(9, "v")}[task]
    test = {TAGGER: words(9, "t"), SETS: sets(9, "t"), NUMBERS: numbers(9, "t")}[task]
    splits = load(tmp_path, task, train=[*rows, more], validation=other, test=test)
    assert notes_of(splits, "occur with")[0].startswith(f"train: {expected}")


def test_texts_that_all_contradict_are_refused(tmp_path: Path) -> None:
    rows = [{"text": f"row {n // 2}", "score": n} for n in range(40)]
    message = refusal(tmp_path, NUMBERS, train=rows, validation=numbers(9, "v"), test=numbers(9, "t"))
    assert "train: each of its texts occurs with different numbers, so nothing can be learnt" in message


def test_a_column_of_zeros_is_noted(tmp_path: Path) -> None:
    rows = [row | {"glad": 0} for row in columns()]
    (note,) = notes_of(load(tmp_path, COLUMNS, train=rows), "hold for no row")
    assert note.startswith("train: 1 of 2 labels hold for no row: 'glad'; no student can learn them")


def test_tags_that_complete_a_type_are_not_called_absent(tmp_path: Path) -> None:
    rows = [{"tokens": ["Ann", f"row {n}"], "tags": ["B-per", "O"]} for n in range(40)]
    splits = load(tmp_path, TAGGER, train=rows)
    assert splits.labels == ("O", "B-per", "I-per")
    assert notes_of(splits, "have no rows") == []


def test_long_sentences_are_noted_as_divided(tmp_path: Path) -> None:
    lengths = [14 if n % 5 == 0 else 4 for n in range(40)]
    rows = [{"tokens": [f"w{n}"] * each, "tags": ["B-x", *["O"] * (each - 1)]} for n, each in enumerate(lengths)]
    task = TokenClassification(max_length=10)
    splits = load(tmp_path, task, train=rows)
    tokenizer = word_tokenizer([f"w{n}" for n in range(40)], 60, 64)
    tokens = tokenise(splits, task, tokenizer, StoragePaths(tmp_path))
    note = describe_truncation(tokens, splits, task, tokenizer)[0]
    divided = sum(len(text) > 8 for text in splits.train["text"])
    assert note == (
        f"train: {divided} of 32 texts are longer than 10 tokens (task.max_length) and are read in overlapping parts; "
        "every word is answered once."
    )


# Cuts and content -----------------------------------------------------------------------------------------------------


def test_rows_are_cut_from_train_with_the_shares_of_rare_labels() -> None:
    labels = pa.array([[0], [0, 1], [0], [0, 1, 2], []] * 40)
    table = pa.table({"id": range(200), "text": [f"{n}" for n in range(200)], "label": labels})
    drawn, rest = draw_rows(table, 50, seed=0)
    assert rows_of_labels(drawn["label"], 3).tolist() == [40, 20, 10]
    assert rows_of_labels(rest["label"], 3).tolist() == [120, 60, 30]


def test_rows_are_cut_from_train_with_the_spread_of_numbers() -> None:
    values = np.random.default_rng(0).permutation(1000).astype(float)
    table = pa.table({"id": range(1000), "text": [f"{n}" for n in range(1000)], "label": values})
    drawn, _ = draw_rows(table, 100, seed=0)
    assert np.histogram(drawn["label"], 10, (0, 1000))[0].tolist() == [10] * 10


@pytest.mark.parametrize(
    ("task", "source"),
    [
        (TAGGER, GeneratedMentions(train_rows=60, validation_rows=20, test_rows=20)),
        (MultiLabel(label="labels"), GeneratedMoods(train_rows=60, validation_rows=20, test_rows=20)),
        (Regression(pair="pair", label="score"), GeneratedPairs(train_rows=60, validation_rows=20, test_rows=20)),
    ],
)
def test_the_content_of_a_split_does_not_depend_on_the_others(task: Task, source: Any) -> None:
    one, same = (load_splits(Data(source=source), task) for _ in range(2))
    other = load_splits(Data(source=source.model_copy(update={"train_rows": 80})), task)
    assert one.key == same.key != other.key
    assert one.content("test") == same.content("test") == other.content("test")
    assert one.content("train") != other.content("train")
    assert one.content("test") != one.content("validation")


def test_the_same_texts_with_numbers_or_labels_are_other_rows(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}", "score": n % 2} for n in range(40)]
    as_numbers = load(tmp_path, NUMBERS, train=rows)
    as_labels = load(tmp_path, TextClassification(label="score"), train=rows)
    assert as_numbers.key != as_labels.key


@pytest.mark.parametrize(
    "task", [MultiLabel(label="labels", labels=("sad", "glad")), TextClassification(labels=("a", "b"))]
)
def test_a_number_without_a_name_is_refused(task: Task, tmp_path: Path) -> None:
    """The names in task.labels are those of the numbers 0 and 1; the data also have 2."""
    several = isinstance(task, MultiLabel)
    rows = [{"text": f"row {n}", task.label: [n % 3] if several else n % 3} for n in range(60)]  # type: ignore[attr-defined]
    message = refusal(tmp_path, task, train=rows)
    assert "train.jsonl, row 3: label '2' has no name: task.labels has 2, for the numbers 0 to 1." in message
