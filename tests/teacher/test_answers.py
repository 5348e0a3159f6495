"""A file with a teacher's answers becomes the transfer set that a model would have written, or is refused with its row.

Shapes: A answers, C outputs.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet
from torch import from_numpy

from kdray.data.copies import WithCopies
from kdray.data.splits import Data, Splits, load_splits
from kdray.data.tokens import TokenSet
from kdray.data.transfer_set import TransferSet
from kdray.errors import DataError, TeacherError
from kdray.tasks.task import Task
from kdray.tasks.text_classification import TextClassification
from kdray.teacher.answer_file import AnswerFile
from kdray.teacher.answers import Answers, read_answers
from kdray.teacher.exporting import texts_to_answer, write_answers
from kdray.teacher.teacher import Teacher, check_quality
from kdray.teacher.transfer import write_transfer_set
from kdray.training.trial import TrialInputs
from tests.task_inputs import KINDS

ALL_KINDS = ["text_classification", *KINDS]


@dataclass(frozen=True)
class Live:
    """A live teacher: the rows, and its transfer set of them."""

    task: Task
    splits: Splits
    tokens: TokenSet
    transfer: TransferSet
    shard_rows: int


@pytest.fixture
def live_teacher(
    inputs_of: Callable[[str], TrialInputs],
    task: TextClassification,
    splits: Splits,
    tokens: TokenSet,
    transfer: TransferSet,
) -> Callable[[str], Live]:
    """A function that gives the live teacher of a kind of task."""

    def live(kind: str) -> Live:
        if kind not in KINDS:
            return Live(task, splits, tokens, transfer, 128)
        inputs, (own_task, source) = inputs_of(kind), KINDS[kind]
        return Live(own_task, load_splits(Data(source=source), own_task), inputs.tokens, inputs.transfer, 64)

    return live


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_exported_logits_give_the_live_transfer_set_bit_for_bit(
    live_teacher: Callable[[str], Live], kind: str, tmp_path: Path
) -> None:
    live = live_teacher(kind)
    write_answers(live.splits, live.tokens, live.transfer, live.task, tmp_path / "answers.parquet")
    file = AnswerFile(source=str(tmp_path / "answers.parquet"), form="logits", id="id")
    answers = read_answers(file, live.task, live.splits)
    written = write_transfer_set(answers.logits_of, live.tokens, live.shard_rows, tmp_path / "set", lambda note: None)
    files = sorted(path.name for path in live.transfer.folder.iterdir())
    assert files == sorted(path.name for path in written.folder.iterdir())
    for name in files:
        assert (written.folder / name).read_bytes() == (live.transfer.folder / name).read_bytes(), name
    assert answers.notes == ()


def said(live: Live, logits_AxC: np.ndarray) -> np.ndarray:
    """The probabilities of these logits, or the numbers themselves (A x C, float64)."""
    outputs_AxC = from_numpy(logits_AxC).double()
    if not live.splits.labels:
        return outputs_AxC.numpy()
    kind = live.task.kind
    return (outputs_AxC.sigmoid() if kind == "multi_label" else outputs_AxC.softmax(-1)).numpy()


def answer_rows(live: Live) -> list[dict[str, Any]]:
    """What the live teacher says about each different text: a row with the texts and a cell for each output."""
    rows: dict[str, dict[str, Any]] = {}
    for split in ("train", "validation", "test"):
        of_split = live.transfer.all_rows(live.tokens, split)
        stated_AxC = said(live, of_split.teacher_logits())
        columns, starts = live.splits.columns(split), of_split.example_starts
        for row, text in enumerate(columns["text"]):
            answers = stated_AxC[starts[row] : starts[row + 1]].T.tolist()
            cells = answers if isinstance(text, list) else [values[0] for values in answers]
            names = {"text": live.task.text, "pair": live.task.pair}
            texts = {names[name]: columns[name][row] for name in names if name in columns}
            outputs = live.splits.labels or live.task.gold_columns
            rows.setdefault(json.dumps(texts), {**texts, **dict(zip(outputs, cells, strict=True))})
    return list(rows.values())


def write_jsonl(rows: list[dict[str, Any]], path: Path) -> AnswerFile:
    path.write_text("\n".join(map(json.dumps, rows)))
    return AnswerFile(source=str(path))


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_probabilities_joined_by_text_are_what_the_outputs_say(
    live_teacher: Callable[[str], Live], kind: str, tmp_path: Path
) -> None:
    live = live_teacher(kind)
    rows = answer_rows(live)
    # The order of rows and columns in the file means nothing.
    shuffled = [dict(reversed(row.items())) for row in reversed(rows)]
    answers = read_answers(write_jsonl(shuffled, tmp_path / "answers.jsonl"), live.task, live.splits)
    for split in ("train", "validation", "test"):
        logits_AxC = live.transfer.logits(split).all()
        assert said(live, answers.logits[split]) == pytest.approx(said(live, logits_AxC), abs=1e-4)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "answers.parquet")
    same = read_answers(AnswerFile(source=str(tmp_path / "answers.parquet")), live.task, live.splits)
    assert same.key == answers.key  # the content decides, not its form
    outputs = live.splits.labels or live.task.gold_columns
    longest = max(rows, key=lambda row: len(row[live.task.text]))
    longest.update({name: longest[other] for name, other in zip(outputs, [*outputs[1:], outputs[0]], strict=True)})
    assert len(outputs) == 1 or read_rows(live, rows, tmp_path).key != answers.key


@pytest.fixture
def live(live_teacher: Callable[[str], Live]) -> Live:
    """The live teacher of the text classification."""
    return live_teacher("text_classification")


def test_a_csv_file_answers_and_extra_rows_are_counted(live: Live, tmp_path: Path) -> None:
    rows = [*answer_rows(live), {"text": "somebody else's text", "negative": 0.5, "positive": 0.5}]
    rows[0]["text"] = f"  {rows[0]['text']} "  # as spreadsheets do
    csv.write_csv(pa.Table.from_pylist(rows), tmp_path / "answers.csv")
    answers = read_answers(AnswerFile(source=str(tmp_path / "answers.csv")), live.task, live.splits)
    assert [note.partition(": ")[2] for note in answers.notes] == [
        f"1 of its {len(rows):,} answers are for other texts."
    ]


Change = Callable[[list[dict[str, Any]]], None]
BAD: dict[str, tuple[Change, str]] = {
    "missing": (lambda rows: rows.pop(5).clear(), "texts of train have no answer, such as"),
    "few": (lambda rows: rows.__delitem__(slice(10, None)), "texts_to_answer writes the texts of a sweep"),
    "doubled": (
        lambda rows: rows.insert(3, {**rows[0], "negative": 0.25, "positive": 0.75}),
        "row 4: answers '{text}' otherwise than {file}, row 1. Keep one answer for each text.",
    ),
    "sum": (
        lambda rows: rows[2].update(positive=0.9, negative=0.9),
        "row 3: its probabilities add up to 1.8, not to 1",
    ),
    "above": (lambda rows: rows[2].update(positive=1.5), "row 3: 1.5 is no probability (0 to 1). Correct that row. If"),
    "negative": (lambda rows: rows[2].update(positive=-0.5), "row 3: -0.5 is no probability"),
    "empty": (lambda rows: rows[2].update(positive=None), "row 3: nan is no probability"),
    "text": (lambda rows: rows[2].update(positive="high"), "row 3, column 'positive': 'high' is not a number"),
    "labels": (
        lambda rows: [row.update(good=row.pop("positive")) for row in rows],
        "no column 'positive' (teacher.outputs); ",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_answer_is_refused_with_its_row(live: Live, tmp_path: Path, case: str) -> None:
    change, message = BAD[case]
    rows = answer_rows(live)
    first = rows[0]["text"]
    change(rows)
    file = write_jsonl(rows, tmp_path / "answers.jsonl")
    with pytest.raises(DataError) as error:
        read_answers(file, live.task, live.splits)
    assert message.format(text=first, file=file.source) in str(error.value)
    assert file.source in str(error.value)


def test_nan_logits_are_refused_and_a_missing_file(live: Live, tmp_path: Path) -> None:
    rows = answer_rows(live)
    table = pa.Table.from_pylist(rows).to_pydict()
    table["positive"][7] = float("inf")
    parquet.write_table(pa.table(table), tmp_path / "answers.parquet")
    with pytest.raises(DataError, match="row 8, column 'positive': inf is not a finite number"):
        read_answers(AnswerFile(source=str(tmp_path / "answers.parquet"), form="logits"), live.task, live.splits)
    with pytest.raises(TeacherError, match="no such file or folder"):
        read_answers(AnswerFile(source=str(tmp_path / "nothing.parquet")), live.task, live.splits)


def read_rows(live: Live, rows: list[dict[str, Any]], tmp_path: Path) -> Answers:
    return read_answers(write_jsonl(rows, tmp_path / "answers.jsonl"), live.task, live.splits)


def test_lists_of_the_best_labels(live_teacher: Callable[[str], Live], tmp_path: Path) -> None:
    live = live_teacher("token_classification")
    labels, rows = live.splits.labels, answer_rows(live)
    listed, expected = [], {}
    for row in rows:
        probabilities_AxC = np.array([row[label] for label in labels]).T
        best_Ax2 = np.argsort(-probabilities_AxC, axis=1)[:, :2]
        shares_Ax2 = np.take_along_axis(probabilities_AxC, best_Ax2, axis=1)
        rest_A = (1 - shares_Ax2.sum(axis=1)) / (len(labels) - 2)
        full_AxC = np.repeat(rest_A[:, None], len(labels), axis=1)
        np.put_along_axis(full_AxC, best_Ax2, shares_Ax2, axis=1)
        expected[json.dumps(row[live.task.text])] = full_AxC
        names = [[labels[number] for number in pair] for pair in best_Ax2]
        listed.append({live.task.text: row[live.task.text], "labels": names, "probabilities": shares_Ax2.tolist()})
    answers = read_rows(live, listed, tmp_path)
    texts = live.splits.columns("test")["text"]
    full_AxC = np.concatenate([expected[json.dumps(words)] for words in texts])
    assert said(live, answers.logits["test"]) == pytest.approx(full_AxC, abs=1e-4)
    assert "list some labels; the others share what is left" in answers.notes[0]


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        (
            ["positive", "good"],
            [0.5, 0.2],
            "row 1, column 'labels': 'good' is no label of the data (negative, positive)",
        ),
        (["positive", "positive"], [0.5, 0.2], "'positive' stands twice"),
        (["positive"], [0.5, 0.2], "has 1 labels, 'probabilities' has 2 numbers"),
        (["positive", "negative"], [0.9, 0.9], "its probabilities add up to 1.8"),
        ("positive", [0.5], "'positive' is not a list"),
    ],
)
def test_bad_lists_are_refused(
    live: Live, tmp_path: Path, labels: Any, probabilities: list[float], message: str
) -> None:
    rows = [{"text": row["text"], "labels": ["positive"], "probabilities": [0.9]} for row in answer_rows(live)]
    rows[0] |= {"labels": labels, "probabilities": probabilities}
    with pytest.raises(DataError) as error:
        read_rows(live, rows, tmp_path)
    assert message in str(error.value)


def test_labels_alone_are_accepted_with_a_note(live: Live, tmp_path: Path) -> None:
    rows = answer_rows(live)
    for row in rows:
        row["positive"] = round(row["positive"])
        row["negative"] = 1 - row["positive"]
    answers = read_rows(live, rows, tmp_path)
    (note,) = answers.notes
    assert "all answers are labels only" in note
    assert "A temperature then says nothing" in note
    # The least probability is one that a logit can say.
    assert {round(float(value), 3) for value in np.unique(answers.logits["test"])} == {0.0, -13.816}
    rows[0] |= {"positive": 0.4, "negative": 0.6}
    assert "answers have a probability below 1e-06" in read_rows(live, rows, tmp_path).notes[0]


def test_a_sentence_with_too_few_answers_is_refused(live_teacher: Callable[[str], Live], tmp_path: Path) -> None:
    live = live_teacher("token_classification")
    rows = answer_rows(live)
    for label in live.splits.labels:
        rows[1][label] = rows[1][label][:-1]
    words = len(rows[1][live.task.text])
    with pytest.raises(DataError, match=rf"row 2: has {words - 1} answers, but .* needs {words}: one for each word"):
        read_rows(live, rows, tmp_path)


def test_texts_without_labels_need_answers_and_copies_have_none(live: Live, tmp_path: Path) -> None:
    data_folder = tmp_path / "data"
    data_folder.mkdir()
    rows = answer_rows(live)
    for split in ("train", "validation", "test"):
        columns = {name: list(live.splits.columns(split)[name]) for name in ("text", "label")}
        columns["label"] = [live.splits.labels[number] for number in columns["label"]]
        csv.write_csv(pa.table(columns), data_folder / f"{split}.csv")
    (data_folder / "unlabelled.csv").write_text("text\na film nobody has seen\n")
    data = Data(source=str(data_folder), unlabelled="unlabelled")
    splits = texts_to_answer(data, live.task, tmp_path / "texts.parquet")
    asked = parquet.read_table(tmp_path / "texts.parquet").to_pylist()
    unlabelled = len(splits.train)
    assert asked[unlabelled] == {"split": "train", "id": unlabelled, "text": "a film nobody has seen"}
    more = Live(live.task, splits, live.tokens, live.transfer, 128)
    with pytest.raises(DataError, match="1 of the 1 texts of train without labels have no answer"):
        read_rows(more, rows, tmp_path)
    rows.append({"text": "a film nobody has seen", "negative": 0.2, "positive": 0.8})
    answers = read_rows(more, rows, tmp_path)
    assert len(answers.logits["train"]) == unlabelled + 1
    assert said(live, answers.logits["train"][-1:]) == pytest.approx(np.array([[0.2, 0.8]]), abs=1e-6)
    copies = WithCopies(splits, 1, lambda texts, number: texts, "key")
    with pytest.raises(TeacherError, match="a file has no answers for changed copies"):
        read_answers(AnswerFile(source=str(tmp_path / "answers.jsonl")), live.task, copies)


def test_the_quality_and_the_order_of_the_labels_are_checked(live: Live, tmp_path: Path) -> None:
    rows = answer_rows(live)
    for row in rows:
        row["positive"], row["negative"] = row["negative"], row["positive"]
    file = write_jsonl(rows, tmp_path / "answers.jsonl")
    logits_AxC = read_answers(file, live.task, live.splits).logits["validation"]
    validation = live.tokens.rows("validation")
    outputs = live.task.outputs(logits_AxC, validation)
    with pytest.raises(TeacherError, match=r"Exchange the names of the columns of .*answers\.jsonl"):
        check_quality(Teacher(outputs=file), live.task, outputs, validation)
