"""Inner terms in whole trainings: a live teacher, stages, interruptions, padding, two workers, and what is shipped."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdray.errors import SpecError
from kdray.slots.job import Report, Worker
from kdray.training.checkpoint_files import read_checkpoint
from kdray.training.signal import LiveSignal
from kdray.training.trial import Recipe, Trial, TrialInputs
from tests.training.two_workers import run_two_workers

TIMES = ("examples_per_s", "train_seconds", "eval_seconds")

TERMS: dict[str, Any] = {
    "student.depth": 2,
    "distillation.hidden_mse": 1.0,
    "distillation.hidden_cosine": 0.5,
    "distillation.embeddings": 0.5,
    "distillation.attention_scores": 0.1,
    "distillation.attention_maps": 1.0,
    "distillation.relations": 1.0,
}
"""Terms of every kind for a student that is as wide as its teacher."""
NARROW: dict[str, Any] = {
    "student.depth": 1,
    "student.hidden": 16,
    "distillation.hidden_mse": 1.0,
    "distillation.relations": 1.0,
}
"""A narrower student, whose hidden states are projected."""
RECURRENT: dict[str, Any] = {
    "student.family": "recurrent",
    "distillation.hidden_cosine": 1.0,
    "distillation.embeddings": 1.0,
    "distillation.layer_map": "final",
}
"""A student of another family, with layers of its own."""


@pytest.fixture(scope="module")
def inputs(trial_inputs: TrialInputs) -> TrialInputs:
    return replace(trial_inputs, signal=LiveSignal(trial_inputs.source, "fp32"))


def trial_of(inputs: TrialInputs, recipe: Recipe, settings: Mapping[str, Any], folder: Path) -> Trial:
    return Trial(recipe=recipe.with_dotted(settings), inputs=inputs, seed=0, target=folder / "student")


def without_times(reports: list[Report]) -> list[Report]:
    return [{name: value for name, value in report.items() if name not in TIMES} for report in reports]


@pytest.mark.parametrize("settings", [TERMS, NARROW, RECURRENT], ids=["terms", "narrow", "recurrent"])
def test_each_term_has_its_share_and_is_lowered(
    inputs: TrialInputs, recipe: Recipe, tmp_path: Path, settings: dict[str, Any]
) -> None:
    changes = {**settings, "training.epochs": 3, "distillation.inner_first": 0.9}
    first, *_, last = trial_of(inputs, recipe, changes, tmp_path)(Worker())
    names = {f"share_{name.split('.')[1]}" for name in settings if name.startswith("distillation.")} - {
        "share_layer_map"
    }
    assert names == {name for name in first if name.startswith("share_")}  # the first stage has inner terms alone
    assert sum(first[name] for name in names) == pytest.approx(1)
    assert {"share_soft", "share_hard"} < set(last)
    inner = [sum(report[name] for name in names) * report["train_loss"] for report in (first, last)]
    assert inner[1] < inner[0]


def test_a_student_that_equals_its_teacher_has_no_inner_loss(
    inputs: TrialInputs, recipe: Recipe, tmp_path: Path
) -> None:
    same = {"student.depth": inputs.source.layers, "student.dropout": 0.0}
    still = {"training.learning_rate": 1e-30, "training.weight_decay": 0.0, "training.epochs": 1}
    terms = {name: value for name, value in TERMS.items() if name.startswith("distillation.")}
    (report,) = trial_of(inputs, recipe, {**same, **still, **terms}, tmp_path)(Worker())
    inner = [report[f"share_{name.split('.')[1]}"] * report["train_loss"] for name in terms]
    # The teacher's hidden states are rounded to bf16, which has 8 significant bits.
    assert sum(inner) < 1e-4


def test_padding_changes_no_term(
    inputs: TrialInputs, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a learning rate near 0 the reported loss is that of the untrained model."""
    still = {"training.learning_rate": 1e-30, "training.weight_decay": 0.0, "training.epochs": 1}
    figures = []
    for multiple in (1, 16):
        monkeypatch.setattr(Worker, "pad_multiple", multiple)
        trial = trial_of(inputs, recipe, {**TERMS, **still, "student.dropout": 0.0}, tmp_path / str(multiple))
        (report,) = trial(Worker())
        figures.append({name: value for name, value in report.items() if "loss" in name or "share" in name})
    # A teacher's state in bf16 may be rounded to the other neighbour.
    assert figures[0] == pytest.approx(figures[1], rel=1e-3)


@pytest.mark.parametrize("settings", [NARROW, RECURRENT], ids=["narrow", "recurrent"])
def test_a_training_continues_in_each_stage(
    inputs: TrialInputs, recipe: Recipe, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Of the two stages the first one ends after the first of two epochs; each has two evaluations."""
    settings = {**settings, "distillation.inner_first": 0.5, "training.evaluations_per_epoch": 2}
    whole = trial_of(inputs, recipe, settings, tmp_path / "whole")
    expected = without_times(list(whole(Worker())))
    for evaluations in (1, 3):
        trial = trial_of(inputs, recipe, settings, tmp_path / str(evaluations))
        cut_off = trial(Worker())
        for _ in range(evaluations + 1):
            next(cut_off)
        cut_off.close()
        checkpoint = read_checkpoint(trial.target.with_name("checkpoint.pt"))
        assert {name.split(".")[0] for name in checkpoint["objective"]} == {"projections"}
        assert without_times(list(trial(Worker()))) == expected
        weights = [load_file(each.target / "model.safetensors") for each in (whole, trial)]
        assert weights[0].keys() == weights[1].keys()
        assert not any("projection" in name for name in weights[0])
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_shipped_student_is_as_one_without_inner_terms(inputs: TrialInputs, recipe: Recipe, tmp_path: Path) -> None:
    """The recorded attention leaves no trace in its files."""
    inner = trial_of(inputs, recipe, TERMS, tmp_path / "inner")
    plain = trial_of(inputs, recipe, {"student.depth": 2}, tmp_path / "plain")
    for trial in (inner, plain):
        list(trial(Worker()))
    names = [sorted(path.name for path in trial.target.iterdir()) for trial in (inner, plain)]
    assert names[0] == names[1]
    assert (inner.target / "config.json").read_text() == (plain.target / "config.json").read_text()


def test_inner_terms_need_a_signal(trial_inputs: TrialInputs, recipe: Recipe, tmp_path: Path) -> None:
    trial = trial_of(trial_inputs, recipe, {"distillation.hidden_mse": 1.0}, tmp_path)
    with pytest.raises(SpecError, match=r"distillation\.hidden_mse: inner terms need the states of a teacher"):
        list(trial(Worker()))


def test_a_layer_map_beyond_the_student_is_refused(inputs: TrialInputs, recipe: Recipe, tmp_path: Path) -> None:
    settings = {"student.depth": 1, "distillation.hidden_mse": 1.0, "distillation.layer_map": "2:1"}
    with pytest.raises(SpecError, match=r"distillation\.layer_map: got '2:1', but the student has no layer 2"):
        list(trial_of(inputs, recipe, settings, tmp_path)(Worker()))


# Two workers ----------------------------------------------------------------------------------------------------------

SHARED = {**NARROW, "distillation.embeddings": 1.0, "distillation.inner_first": 0.5}
"""Projections, and both stages: in each of them some parameters have no loss."""


def _train_rank(worker: Worker, folder: Path, trial: Trial) -> None:
    reports = list(trial(worker))
    if worker.rank == 0:
        torch.save(reports, folder / "reports.pt")


def test_two_workers_train_the_same_student_as_one(inputs: TrialInputs, recipe: Recipe, tmp_path: Path) -> None:
    settings = {**SHARED, "student.dropout": 0.0}
    alone = trial_of(inputs, recipe, settings, tmp_path / "alone")
    expected = list(alone(Worker()))
    shared = trial_of(inputs, recipe, settings, tmp_path / "shared")
    run_two_workers(_train_rank, tmp_path, shared)
    reports = torch.load(tmp_path / "reports.pt", weights_only=True)
    for report, one in zip(without_times(reports), without_times(expected), strict=True):
        assert report == pytest.approx(one, rel=1e-3)
    weights = [load_file(each.target / "model.safetensors") for each in (alone, shared)]
    for name, tensor in weights[0].items():
        assert torch.dist(tensor, weights[1][name]) <= 1e-2 * tensor.norm() + 1e-6, name
