"""Sweeps whose teacher is a file, several models, or the student of an earlier sweep."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from pyarrow import parquet
from rich.console import Console
from torch import from_numpy

from kdray.choice.reruns import Confirm
from kdray.data.splits import Data, Splits
from kdray.data.tokens import TokenSet
from kdray.data.transfer_set import TransferSet
from kdray.errors import DataError, Refused, SpecError, TeacherError
from kdray.export.card import FILE
from kdray.models.fresh import FreshTransformer
from kdray.models.lineage import Lineage
from kdray.models.pretrained import Pretrained
from kdray.report.files import markdown
from kdray.report.table import table
from kdray.run import Outcome
from kdray.search.settings import Search, at_least
from kdray.sources.generated.reviews import GeneratedReviews
from kdray.storage.paths import SweepPaths
from kdray.storage.records import read_record
from kdray.students.transformer import TransformerStudent
from kdray.sweep import Sweep
from kdray.tasks.text_classification import TextClassification
from kdray.teacher.exporting import write_answers
from kdray.teacher.teacher import Teacher
from kdray.tracking.settings import Tracking, default_uri
from kdray.training.settings import Training

ONE = Search(trials=1, stopping=None)
TINY = FreshTransformer(layers=2, width=32, heads=2, feed_forward=64, vocabulary=300)
OTHER = FreshTransformer(layers=1, width=16, heads=2, feed_forward=32, vocabulary=150)
TRAINED = Training(epochs=3, learning_rate=5e-3, precision="fp32")


@pytest.fixture
def answer_file(
    splits: Splits, tokens: TokenSet, transfer: TransferSet, task: TextClassification, tmp_path: Path
) -> Path:
    """The answers of the shared teacher as a file, as probabilities by text."""
    write_answers(splits, tokens, transfer, task, tmp_path / "logits.parquet")
    rows = parquet.read_table(tmp_path / "logits.parquet").to_pydict()
    labels = list(splits.labels)
    probabilities = from_numpy(np.stack([rows[label] for label in labels], axis=1)).double().softmax(-1).numpy()
    kept: dict[str, int] = {}
    for row, text in enumerate(rows["text"]):
        kept.setdefault(text, row)
    columns = {label: probabilities[list(kept.values()), output] for output, label in enumerate(labels)}
    parquet.write_table(pa.table({"text": list(kept), **columns}), tmp_path / "answers.parquet")
    return tmp_path / "answers.parquet"


def terminal(outcome: Outcome) -> str:
    """The table of trials on a terminal."""
    console = Console(width=300, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(outcome.figures))
    return console.export_text()


def test_a_teacher_with_rows_of_its_own(run_tiny: Callable[..., tuple[Outcome, list[str]]], tmp_path: Path) -> None:
    own = Data(source=GeneratedReviews(train_rows=300, validation_rows=50, test_rows=50, seed=4))
    fields: dict[str, Any] = {
        "data": Data(source=GeneratedReviews(train_rows=40, validation_rows=60, test_rows=60)),
        "teacher": Teacher(model=TINY, data=own, training=TRAINED, above_chance=0.0),
        "space": {"student.depth": [1]},
    }
    outcome, notes = run_tiny(**fields)
    rows = read_record(Lineage, outcome.paths.lineage).teacher_rows  # type: ignore[union-attr]
    assert 200 < rows <= 300
    assert f"{rows} rows of its own to fine-tune the teacher on" in notes
    said = f"The teacher was fine-tuned on {rows} labelled rows of its own (teacher.data), which no student sees."
    assert said in markdown(outcome.figures)
    assert said in (outcome.paths.chosen / FILE).read_text()
    assert said in " ".join(terminal(outcome).split())
    again, _ = run_tiny(**fields)
    assert again.figures.records == outcome.figures.records
    other = Data(source=GeneratedReviews(train_rows=300, validation_rows=50, test_rows=50, seed=5))
    with pytest.raises(Refused, match="teacher"):
        run_tiny(**{**fields, "teacher": Teacher(model=TINY, data=other, training=TRAINED, above_chance=0.0)})


def test_a_sweep_whose_teacher_is_a_file(
    run_tiny: Callable[..., tuple[Outcome, list[str]]], answer_file: Path, source: Pretrained
) -> None:
    student = TransformerStudent(checkpoint=str(source.folder))
    outcome, _ = run_tiny(
        teacher=Teacher(outputs=str(answer_file)),
        student=student,
        confirm=Confirm(candidates=1, seeds=1, controls=True),
    )
    assert outcome.exit_code == 0
    (record,) = outcome.figures.records
    assert record.metrics["retention"] > 0.5
    assert not {"speedup", "cpu_speedup"} & record.metrics.keys()
    assert all(name not in outcome.figures.teacher for name in ("latency_ms", "parameters"))
    lineage = read_record(Lineage, outcome.paths.lineage)
    assert lineage is not None
    assert (lineage.teacher, lineage.models) == (str(answer_file), ())
    report, card = markdown(outcome.figures), (outcome.paths.chosen / FILE).read_text()
    page = (outcome.paths.report / "report.html").read_text()
    assert re.search(r"\| parameters \| unknown \|", report)
    assert re.search(r"\| latency +\| unknown \|", card)
    assert "distilled from the answers in `answers.parquet`" in card
    assert "unknown" in terminal(outcome)
    for text in (report, card, terminal(outcome), page.partition("<table")[2]):
        assert "nan" not in re.findall(r"[a-z]+", text.lower())
        assert "speed-up" not in text
    assert "times as fast" not in " ".join(outcome.figures.sentences)
    # Started again, the sweep finds its transfer set and its trials.
    again, _ = run_tiny(
        teacher=Teacher(outputs=str(answer_file)),
        student=student,
        confirm=Confirm(candidates=1, seeds=1, controls=True),
    )
    assert again.figures.records == outcome.figures.records


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({}, TeacherError, "student.checkpoint: must be given, because the teacher is a file"),
        ({"student": "given", "space": {"student.checkpoint": [None], "student.depth": [1]}}, TeacherError, "must be"),
        (
            {"student": "given", "search": Search(trials=1, objectives=("quality", "speedup"))},
            SpecError,
            "speedup: the costs of a teacher that is a file are unknown",
        ),
        (
            {"student": "given", "search": Search(trials=1, constraints={"speedup": at_least(2)})},
            SpecError,
            "Name latency_ms or another cost",
        ),
    ],
)
def test_what_a_file_cannot_give_is_refused_before_anything_starts(
    run_tiny: Callable[..., tuple[Outcome, list[str]]],
    answer_file: Path,
    source: Pretrained,
    fields: dict[str, Any],
    kind: type[Refused],
    message: str,
) -> None:
    if "student" in fields:
        fields = {**fields, "student": TransformerStudent(checkpoint=str(source.folder))}
    with pytest.raises(kind, match=re.escape(message)) as error:
        run_tiny(teacher=Teacher(outputs=str(answer_file)), **fields)
    assert error.value.exit_code == 2


def test_a_bad_file_is_refused_before_any_training(
    run_tiny: Callable[..., tuple[Outcome, list[str]]], answer_file: Path, source: Pretrained, tmp_path: Path
) -> None:
    rows = parquet.read_table(answer_file)
    parquet.write_table(rows.slice(0, 30), answer_file)
    with pytest.raises(DataError, match="texts of train have no answer") as error:
        run_tiny(teacher=Teacher(outputs=str(answer_file)), student=TransformerStudent(checkpoint=str(source.folder)))
    assert error.value.exit_code == 2
    assert not (tmp_path / "cache" / "transfers").exists()


def test_students_of_a_file_may_be_drawn_at_random(
    run_tiny: Callable[..., tuple[Outcome, list[str]]], answer_file: Path, source: Pretrained
) -> None:
    outcome, _ = run_tiny(
        teacher=Teacher(outputs=str(answer_file)),
        student=TransformerStudent(checkpoint=str(source.folder), layers="random"),
    )
    assert outcome.figures.records[0].state == "completed"


def test_several_teachers_of_two_tokenizers(
    run_tiny: Callable[..., tuple[Outcome, list[str]]],
) -> None:
    teacher = Teacher(model=[TINY, OTHER, TINY], weights=[2, 1, 1], training=TRAINED, above_chance=0.0)
    outcome, notes = run_tiny(teacher=teacher, student=TransformerStudent(source=2), space={"student.depth": [1, 2]})
    lineage = read_record(Lineage, outcome.paths.lineage)
    assert lineage is not None
    models = lineage.models
    assert [(model.share, model.seed, model.gave_students) for model in models] == [
        (0.5, 0, False),
        (0.25, 1, False),
        (0.25, 2, True),
    ]
    assert len({model.weights for model in models}) == 3  # the same backbone twice is two teachers
    assert {"accuracy", "latency_ms", "parameters"} <= models[1].figures.keys()
    total = sum(model.figures["parameters"] for model in models)
    assert outcome.figures.teacher["parameters"] == total
    latency = sum(model.figures["latency_ms"] for model in models)
    metrics = outcome.figures.records[0].metrics
    assert metrics["speedup"] == pytest.approx(latency / metrics["latency_ms"])
    texts = [terminal(outcome), markdown(outcome.figures), (outcome.paths.report / "report.html").read_text()]
    for text in texts:
        assert "teacher (mean of 3)" in text
        assert "teacher 2: from scratch, source of the students" in text
        assert "weights 0.5, 0.25, 0.25" in text
    assert "the mean of 3 teachers" in (outcome.paths.chosen / FILE).read_text()
    assert any(
        "(weight 0.5), " in note and "Students are built from teacher 2 (from scratch)." in note for note in notes
    )


def test_mlflow_has_each_teacher_and_says_that_costs_are_unknown(
    run_tiny: Callable[..., tuple[Outcome, list[str]]], answer_file: Path, source: Pretrained, teacher: Pretrained
) -> None:
    of_file, _ = run_tiny(
        name="file",
        teacher=Teacher(outputs=str(answer_file)),
        student=TransformerStudent(checkpoint=str(source.folder)),
        tracking=Tracking(),
    )
    run_tiny(name="several", teacher=Teacher(model=[str(teacher.folder)] * 2), tracking=Tracking())
    client = MlflowClient(default_uri(of_file.paths))
    (experiment,) = [each for each in client.search_experiments() if each.name != "Default"]
    runs = {each.info.run_name: each for each in client.search_runs([experiment.experiment_id])}
    tags, metrics = runs["file"].data.tags, runs["file"].data.metrics
    assert (tags["kdray.teacher"], tags["kdray.teacher_costs"]) == (str(answer_file), "unknown")
    assert "teacher.accuracy" in metrics
    assert not {"teacher.latency_ms", "speedup", "chosen.test.speedup"} & metrics.keys()
    metrics = runs["several"].data.metrics
    assert metrics["teacher.accuracy"] == metrics["teacher.0.accuracy"] == metrics["teacher.1.accuracy"]
    assert metrics["teacher.parameters"] == 2 * metrics["teacher.1.parameters"]


def test_students_are_built_from_the_best_teacher_by_default(
    run_tiny: Callable[..., tuple[Outcome, list[str]]], teacher: Pretrained, source: Pretrained, chosen: SweepPaths
) -> None:
    untrained = [str(source.folder), str(teacher.folder)]
    with pytest.raises(TeacherError, match=re.escape(f"teacher.model 0 ({source.folder})'s validation accuracy")):
        run_tiny(teacher=Teacher(model=untrained))
    folders = [str(chosen.chosen), str(teacher.folder)]
    outcome, notes = run_tiny(teacher=Teacher(model=folders, above_chance=0.0), name="free")
    lineage = read_record(Lineage, outcome.paths.lineage)
    assert lineage is not None
    qualities = [model.figures["accuracy"] for model in lineage.models]
    best = qualities.index(max(qualities))
    assert [model.gave_students for model in lineage.models] == [number == best for number in range(2)]
    assert any(f"Students are built from teacher {best} ({folders[best]}), the best one." in note for note in notes)
    # Only one of the two teachers is the student of a sweep.
    assert [sweep.name for sweep in lineage.earlier_sweeps()] == [chosen.name]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (2, "student.source: got 2, but no teacher has this number or name. Allowed: 0 ("),
        ("other", "got 'other', but no teacher has this number or name"),
    ],
)
def test_a_source_that_is_no_teacher_is_refused(
    run_tiny: Callable[..., tuple[Outcome, list[str]]], teacher: Pretrained, named: Any, message: str
) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        run_tiny(teacher=Teacher(model=[str(teacher.folder), TINY]), student=TransformerStudent(source=named))


def test_each_teacher_must_have_the_layers_of_the_students(
    run_tiny: Callable[..., tuple[Outcome, list[str]]], make_sweep: Callable[..., Sweep]
) -> None:
    teacher = Teacher(model=[TINY, OTHER], training=TRAINED)
    with pytest.raises(SpecError, match=r"got 2, but .* has 1 layers; .* That model is teacher 1 \(from scratch\)"):
        run_tiny(teacher=teacher)
    with pytest.raises(SpecError, match=r"space 'student\.source': all students of a sweep"):
        make_sweep(teacher=teacher, space={"student.source": [0, 1]})


def test_a_chain_of_sweeps_shows_the_first_teacher(
    run_tiny: Callable[..., tuple[Outcome, list[str]]],
    make_sweep: Callable[..., Sweep],
    chosen: SweepPaths,
    data_folder: Path,
    tmp_path: Path,
) -> None:
    confirm = Confirm(candidates=1, seeds=1, controls=False)
    first, _ = run_tiny(name="first", confirm=confirm, space={"student.depth": [2]})
    assistant = Teacher(model=str(first.paths.chosen), above_chance=0.0)
    second, notes = run_tiny(name="second", teacher=assistant, space={"student.depth": [1]})
    assert any("is the student of the sweep first, whose teacher was" in note for note in notes)
    lineage = read_record(Lineage, second.paths.lineage)
    assert lineage is not None
    (earlier,) = lineage.earlier_sweeps()
    verdict = first.figures.verdict
    assert verdict is not None
    assert earlier.is_on_same_rows
    assert earlier.on_test["teacher"] == verdict.teacher.estimate
    texts = [markdown(second.figures), (second.paths.chosen / FILE).read_text()]
    texts.append((second.paths.report / "report.html").read_text())
    for text in texts:
        assert "The sweeps before this one" in text
        assert f"{verdict.teacher.estimate:.4f}" in text
        assert "as here" in text
    # The card is published: it has no folder of this machine.
    assert str(tmp_path) not in texts[1]

    third, _ = run_tiny(
        name="third",
        teacher=Teacher(model=str(second.paths.chosen), above_chance=0.0),
        space={"student.depth": [1]},
        data=Data(source=str(data_folder), test=None),
    )
    assert [sweep.name for sweep in third.figures.lineage.earlier_sweeps()] == ["second", "first"]
    assert "The figures of second, first are of other rows than those of this sweep" in markdown(third.figures)

    first.paths.teacher_figures.write_text("{")
    _, notes = run_tiny(name="fourth", teacher=assistant, space={"student.depth": [1]})
    assert any("the records of its sweep cannot be read" in note for note in notes)
    assert json.loads(first.paths.lineage.read_text())["teacher"]
