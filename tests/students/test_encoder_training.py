"""Recurrent, convolutional and static students are trained like every other student, and chosen by a sweep."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from kdray.errors import SpecError, TeacherError
from kdray.export.prediction import Predictor
from kdray.export.shipped import read_shipped
from kdray.losses.distillation import Distillation
from kdray.models.pretrained import Pretrained
from kdray.slots.job import Report, Worker
from kdray.slots.local import LocalSlots
from kdray.students.convolutional import ConvolutionalStudent
from kdray.students.recurrent import RecurrentStudent
from kdray.students.static import StaticStudent
from kdray.students.student import Student
from kdray.students.transformer import TransformerStudent
from kdray.sweep import Sweep
from kdray.tasks.token_classification import TokenClassification
from kdray.teacher.teacher import Teacher
from kdray.training.settings import Training
from kdray.training.trial import EvaluateStudent, Recipe, Trial, TrialInputs
from tests.stages.conftest import RunTiny, run_tiny  # noqa: F401  (a fixture)
from tests.training.two_workers import run_two_workers

InputsOf = Callable[[str], TrialInputs]
TIMES = ("examples_per_s", "train_seconds", "eval_seconds")
TRAINING = Training(epochs=4, batch_size=32, learning_rate=1e-2, precision="fp32", checkpoint_evaluations=1)
RECURRENT = RecurrentStudent(width=16, dropout=0.1)
CONVOLUTIONAL = ConvolutionalStudent(filters=16, dropout=0.1)
STATIC = StaticStudent(width=16, dropout=0.1)
FAMILIES = {student.family: student for student in (RECURRENT, CONVOLUTIONAL, STATIC)}
every_family = pytest.mark.parametrize("student", FAMILIES.values(), ids=FAMILIES)


def trial_of(student: Student, inputs: TrialInputs, target: Path, seed: int = 0, **training: Any) -> Trial:
    recipe = Recipe(
        student=student,
        training=TRAINING.model_copy(update=training),
        # Labels and soft targets.
        distillation=Distillation(alpha=0.5),
    )
    return Trial(recipe=recipe, inputs=inputs, seed=seed, target=target / "student")


def run(trial: Trial) -> list[Report]:
    with LocalSlots() as slots:
        return without_times(list(slots.run(trial, "trial-0")))


def without_times(reports: list[Report]) -> list[Report]:
    return [{name: value for name, value in report.items() if name not in TIMES} for report in reports]


# Trials ---------------------------------------------------------------------------------------------------------------


@every_family
def test_a_student_learns_from_labels_and_soft_targets(
    student: Student, trial_inputs: TrialInputs, tmp_path: Path
) -> None:
    reports = run(trial_of(student, trial_inputs, tmp_path))
    assert reports[-1]["train_loss"] < 0.7 * reports[0]["train_loss"]
    assert reports[-1]["accuracy"] > 0.8
    # The student on disk is the one that was evaluated.
    with LocalSlots() as slots:
        evaluate = EvaluateStudent(trial_inputs, Pretrained(tmp_path / "student", "student"), "validation")
        (loaded,) = slots.run(evaluate, "evaluate")
    assert all(loaded[name] == pytest.approx(reports[-1][name], rel=1e-5) for name in loaded)


@pytest.mark.parametrize(
    ("kind", "student"),
    [
        ("token_classification", RECURRENT),
        ("token_classification", CONVOLUTIONAL),
        ("multi_label", RECURRENT),
        ("multi_label", CONVOLUTIONAL),
        ("multi_label", STATIC),
        ("regression", RECURRENT.model_copy(update={"pooling": "attention"})),
        ("regression", CONVOLUTIONAL),
        ("regression", STATIC),
    ],
    ids=lambda value: value if isinstance(value, str) else value.family,
)
def test_a_student_learns_every_task_that_it_can_answer(
    kind: str, student: Student, inputs_of: InputsOf, tmp_path: Path
) -> None:
    inputs = inputs_of(kind)
    student.check_task(inputs.task)
    reports = run(trial_of(student, inputs, tmp_path, epochs=12))
    assert reports[-1]["train_loss"] < 0.95 * reports[0]["train_loss"]
    quality = inputs.task.quality.name
    loaded = Pretrained(tmp_path / "student", "student")
    with LocalSlots() as slots:
        (figures,) = slots.run(EvaluateStudent(inputs, loaded, "validation"), "evaluate")
    assert figures[quality] == pytest.approx(reports[-1][quality], rel=1e-4)


@every_family
def test_the_same_seed_gives_the_same_numbers(student: Student, trial_inputs: TrialInputs, tmp_path: Path) -> None:
    one, same, other = (
        run(trial_of(student, trial_inputs, tmp_path / folder, seed, epochs=2))
        for folder, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == same != other


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@every_family
def test_a_trial_that_is_cut_off_continues_with_the_same_numbers(
    student: Student, precision: str, trial_inputs: TrialInputs, tmp_path: Path
) -> None:
    changes = {"precision": precision, "evaluations_per_epoch": 2, "epochs": 2}
    uninterrupted = trial_of(student, trial_inputs, tmp_path / "uninterrupted", **changes)
    interrupted = trial_of(student, trial_inputs, tmp_path / "interrupted", **changes)
    expected = run(uninterrupted)
    first, second = Worker(), Worker()
    cut_off = interrupted(first)
    next(cut_off), next(cut_off)
    cut_off.close()
    assert without_times(list(interrupted(second))) == expected
    assert second.progress < 20  # steps of a training without a checkpoint
    files = [(trial.target / "model.safetensors").read_bytes() for trial in (uninterrupted, interrupted)]
    assert files[0] == files[1]


def _train_rank(worker: Worker, folder: Path, inputs: TrialInputs) -> None:
    """The main function of one process of a slot: train a student of each family; rank 0 writes the reports."""
    reports = {name: list(trial(worker)) for name, trial in _trials_without_dropout(inputs, folder)}
    if worker.rank == 0:
        torch.save(reports, folder / "reports.pt")


def _trials_without_dropout(inputs: TrialInputs, folder: Path) -> Iterator[tuple[str, Trial]]:
    """Dropout would be another one: each rank draws its own."""
    for name, student in FAMILIES.items():
        without_dropout = student.model_copy(update={"dropout": 0.0})
        yield name, trial_of(without_dropout, inputs, folder / name, epochs=2, learning_rate=1e-3)


@pytest.mark.slow
def test_two_workers_train_the_same_students_as_one(trial_inputs: TrialInputs, tmp_path: Path) -> None:
    run_two_workers(_train_rank, tmp_path, trial_inputs)
    reports = torch.load(tmp_path / "reports.pt", weights_only=True)
    for name, alone in _trials_without_dropout(trial_inputs, tmp_path / "alone"):
        expected = without_times(list(alone(Worker())))
        for report, own in zip(without_times(reports[name]), expected, strict=True):
            assert report == pytest.approx(own, rel=2e-3, abs=2e-3), name


# Sweeps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_chooses_a_recurrent_student_which_teaches_the_next_sweep(
    run_tiny: RunTiny,  # noqa: F811
    make_sweep: Callable[..., Sweep],
    tmp_path: Path,
) -> None:
    space = {"student.width": [16], "student.embedding_width": [8]}
    outcome, _ = run_tiny(student=RecurrentStudent(), training=TRAINING, space=space)
    folder = outcome.paths.chosen
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["width"], config["embedding_width"]) == ("kdray_recurrent", 16, 8)
    predictor = Predictor(read_shipped(outcome.paths), "pytorch", 8)
    answers = list(predictor.answers(["a good warm film", "a bad cold film"], None))
    assert [answer.columns()["predicted"] for answer in answers] == ["positive", "negative"]

    # The student keeps its family in the records of the sweep, and teaches students of another one.
    teacher, space = Teacher(model=str(folder)), {"student.width": [16]}
    second, _ = run_tiny(name="second", teacher=teacher, student=StaticStudent(), training=TRAINING, space=space)
    assert json.loads((second.paths.chosen / "config.json").read_text())["model_type"] == "kdray_static"


@pytest.mark.slow
def test_a_recurrent_teacher_teaches_transformers_that_are_built_from_another_model(
    run_tiny: RunTiny,  # noqa: F811
    trial_inputs: TrialInputs,
    tmp_path: Path,
) -> None:
    run(trial_of(RECURRENT, trial_inputs, tmp_path))
    teacher, space = Teacher(model=str(tmp_path / "student")), {"student.depth": [1]}
    with pytest.raises(
        TeacherError, match=r"kdray_recurrent model has no layers of a Transformer.*student\.checkpoint"
    ):
        run_tiny(name="refused", teacher=teacher, space=space)
    student = TransformerStudent(checkpoint=str(trial_inputs.source.folder))
    outcome, _ = run_tiny(teacher=teacher, student=student, space=space)
    assert json.loads((outcome.paths.chosen / "config.json").read_text())["model_type"] == "bert"


def test_plain_transformers_knows_the_model_types_once_kdray_has_registered_them(
    trial_inputs: TrialInputs, tmp_path: Path
) -> None:
    model = RECURRENT.build(trial_inputs.source.model(), seed=0)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ids = torch.tensor([[2, 7, 8, 3]])
    with torch.inference_mode():
        assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)


def test_a_sweep_with_a_student_that_cannot_answer_is_refused(make_sweep: Callable[..., Sweep]) -> None:
    with pytest.raises(SpecError, match="a static student cannot tag words"):
        make_sweep(task=TokenClassification(), student=StaticStudent(), space={"student.width": [16]})
