"""A teacher that is fine-tuned on other rows than those of its students."""

import json
from pathlib import Path
from typing import Any

import pytest

from kdray.data.splits import Data, Splits, load_splits
from kdray.errors import DataError, SpecError
from kdray.sources.generated.mentions import GeneratedMentions
from kdray.sources.generated.reviews import GeneratedReviews
from kdray.tasks.task import Task
from kdray.tasks.text_classification import TextClassification
from kdray.tasks.token_classification import TokenClassification
from kdray.teacher.own_rows import own_rows
from kdray.teacher.teacher import Teacher
from kdray.training.settings import Training

SMALL = {"train_rows": 60, "validation_rows": 20, "test_rows": 20}


def write(path: Path, rows: list[tuple[str, str]]) -> Data:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return Data(source=str(path))


@pytest.fixture
def of_students(tmp_path: Path) -> Splits:
    rows = [(f"plain film number {number} of the year", "ab"[number % 2]) for number in range(60)]
    return load_splits(write(tmp_path / "students.jsonl", rows), TextClassification())


@pytest.mark.parametrize(
    ("task", "source"),
    [(TextClassification(), GeneratedReviews), (TokenClassification(), GeneratedMentions)],
)
def test_the_rows_are_those_of_the_other_source(task: Task, source: type[Any]) -> None:
    students = load_splits(Data(source=source(**SMALL)), task)
    rows = own_rows(Data(source=source(**SMALL, seed=1)), task, students)
    assert rows.labels == students.labels
    assert rows.key != students.key
    assert not set(map(str, rows.train["text"])) & set(map(str, [*students.validation["text"], *students.test["text"]]))


def test_rows_on_which_students_are_measured_are_left_out(tmp_path: Path, of_students: Splits) -> None:
    own = [(f"another long text with the number {number}", "ab"[number % 2]) for number in range(60)]
    measured = [(of_students.test["text"][0].upper(), "a"), (f"{of_students.validation['text'][0]}!", "b")]
    data = write(tmp_path / "own.jsonl", own + measured * 40)
    without, rows = (
        load_splits(data, TextClassification()),
        own_rows(data, TextClassification(), of_students),
    )
    assert not any("plain film" in text.casefold() for text in rows.train["text"])
    left_out = len(without.train) - len(rows.train)
    (note,) = (note for note in rows.notes if "left out" in note and "data, too" in note)
    assert f"{left_out} of {len(without.train)} rows to train on stand in validation or test of data, too" in note
    assert rows.key not in (without.key, own_rows(write(tmp_path / "b.jsonl", own), TextClassification(), of_students))


def test_rows_that_cannot_teach_are_refused(tmp_path: Path, of_students: Splits) -> None:
    task = TextClassification()
    other = [(f"a text with the number {number}", "ac"[number % 2]) for number in range(60)]
    with pytest.raises(SpecError, match=r"teacher\.data: its labels are a, c, but those of data are a, b"):
        own_rows(write(tmp_path / "other.jsonl", other), task, of_students)
    with pytest.raises(DataError, match=r"teacher\.data: .*nowhere"):
        own_rows(Data(source=str(tmp_path / "nowhere")), task, of_students)
    texts = [*of_students.validation["text"], *of_students.test["text"]]
    data = write(tmp_path / "measured.jsonl", [(text, "ab"[number % 2]) for number, text in enumerate(texts)] * 9)
    with pytest.raises(DataError, match="no two different answers are left to learn"):
        own_rows(data, task, of_students)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"data: is for a teacher that is fine-tuned here, Teacher\(\.\.\., training=Training\(\)\)"),
        ({"training": Training(), "data": Data(source="x", unlabelled="y")}, "fine-tuned on labelled rows"),
        ({"training": Training(), "data": Data(source="x", max_labelled=4)}, "fine-tuned on labelled rows"),
        ({"model": None, "outputs": "a.csv"}, "data: has no meaning for a teacher that is a file"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Teacher(**{"model": "m", "data": Data(source="x"), **settings})


def test_a_teacher_without_rows_of_its_own_keeps_its_record() -> None:
    assert "data" not in Teacher(model="m").model_dump()
    assert Teacher(**json.loads(Teacher(model="m", training=Training(), data=Data(source="x")).model_dump_json()))
