"""A trial trains one student, leaves it where plain transformers finds it, and can be cut off at any report."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kdray.data.splits import Splits
from kdray.data.tokens import tokenise
from kdray.errors import JobError, SpecError
from kdray.evaluation.quality import student_quality
from kdray.models.pretrained import Pretrained
from kdray.slots.job import Report, Worker
from kdray.slots.local import LocalSlots
from kdray.storage.paths import StoragePaths
from kdray.training.trial import EvaluateStudent, Recipe, Trial, TrialInputs

TIMES = ("examples_per_s", "train_seconds", "eval_seconds")


def timeless(reports: list[Report]) -> list[Report]:
    return [{name: value for name, value in report.items() if name not in TIMES} for report in reports]


def run(trial: Trial) -> list[Report]:
    with LocalSlots() as slots:
        return list(slots.run(trial, "trial-0"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "trials" / "0000" / "student"


def test_a_trial_reports_and_leaves_its_student(trial_inputs: TrialInputs, recipe: Recipe, target: Path) -> None:
    reports = run(Trial(recipe, trial_inputs, 0, target))
    assert [(report["epoch"], report["step"]) for report in reports] == [(1, 10), (2, 20)]
    expected = {
        "accuracy",
        "macro_f1",
        "mcc",
        "loss",
        "agreement",
        "retention",
        "train_loss",
        "share_soft",
        "share_hard",
        "learning_rate",
        "epoch",
        "step",
        *TIMES,
    }
    assert set(reports[-1]) == expected
    assert {path.name for path in target.parent.iterdir()} == {"student", "ended.json"}  # no checkpoint is left
    assert AutoModelForSequenceClassification.from_pretrained(target).config.num_hidden_layers == 2


def test_the_student_on_disk_is_the_one_that_was_measured(
    trial_inputs: TrialInputs, recipe: Recipe, target: Path, splits: Splits
) -> None:
    *_, last = run(Trial(recipe.with_dotted({"training.precision": "bf16"}), trial_inputs, 0, target))
    with LocalSlots() as slots:
        (again,) = slots.run(EvaluateStudent(trial_inputs, Pretrained(target, "student"), "validation"), "examine")
    assert all(again[name] == pytest.approx(last[name], rel=1e-5) for name in again)
    assert again["accuracy"] == last["accuracy"]
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    texts, labels = list(splits.validation["text"]), list(splits.validation["label"])
    with torch.inference_mode():
        logits = model(**tokenizer(texts, truncation=True, max_length=16, padding=True, return_tensors="pt")).logits
    assert (logits.argmax(1).numpy() == labels).mean() == last["accuracy"]
    assert model.config.id2label == {0: "negative", 1: "positive"}


def test_the_same_seed_gives_the_same_numbers(trial_inputs: TrialInputs, recipe: Recipe, tmp_path: Path) -> None:
    random = recipe.with_dotted({"student.layers": "random", "student.dropout": 0.1})
    one, same, other = (
        timeless(run(Trial(random, trial_inputs, seed, tmp_path / str(place) / "student")))
        for place, seed in enumerate((1, 1, 2))
    )
    assert one == same != other


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_trial_that_is_cut_off_goes_on(
    trial_inputs: TrialInputs, recipe: Recipe, tmp_path: Path, precision: str
) -> None:
    changed = recipe.with_dotted(
        {"training.precision": precision, "student.dropout": 0.1, "training.evaluations_per_epoch": 2}
    )
    whole, parts = (Trial(changed, trial_inputs, 0, tmp_path / name / "student") for name in ("whole", "parts"))
    expected = timeless(run(whole))
    begun, resumed, again = Worker(), Worker(), Worker()
    cut = parts(begun)
    next(cut), next(cut)
    cut.close()
    assert not parts.target.exists()
    assert timeless(list(parts(resumed))) == expected  # what was told before is told again
    assert begun.progress > 0
    assert resumed.progress < 20  # steps
    assert timeless(list(parts(again))) == expected
    assert again.progress == 0  # it had ended
    assert all((place.target / "model.safetensors").exists() for place in (whole, parts))
    files = [(place.target / "model.safetensors").read_bytes() for place in (whole, parts)]
    assert files[0] == files[1]


def test_a_trial_that_is_stopped_leaves_no_student(trial_inputs: TrialInputs, recipe: Recipe, target: Path) -> None:
    with LocalSlots() as slots:
        reports = slots.run(Trial(recipe, trial_inputs, 0, target), "trial-0")
        next(reports)
        slots.cancel("trial-0")
        assert list(reports) == []
    assert not target.exists()


def test_an_absurd_rate_fails_with_a_reason(trial_inputs: TrialInputs, recipe: Recipe, target: Path) -> None:
    with pytest.raises(JobError, match=r"not finite \(nan or inf\) by step 10; try a lower learning rate"):
        run(Trial(recipe.with_dotted({"training.learning_rate": 1e30}), trial_inputs, 0, target))
    assert not target.exists()


def test_warm_things_do_not_change_the_numbers(trial_inputs: TrialInputs, recipe: Recipe, tmp_path: Path) -> None:
    """One trial after another on the same slot: the source stays what it was."""
    with LocalSlots() as slots:
        first, second = (
            timeless(list(slots.run(Trial(recipe, trial_inputs, 0, tmp_path / name / "student"), name)))
            for name in "ab"
        )
    assert first == second


def test_a_student_of_a_checkpoint_with_another_tokenizer_learns_from_the_same_teacher(
    trial_inputs: TrialInputs, recipe: Recipe, splits: Splits, source: Pretrained, target: Path, tmp_path: Path
) -> None:
    """The logits are keyed by example, not by token ids."""
    shorter = trial_inputs.task.model_copy(update={"max_length": 8})
    tokens = tokenise(splits, shorter, source.tokenizer(), StoragePaths(tmp_path))
    other = TrialInputs(shorter, source, tokens, trial_inputs.transfer)
    assert tokens.key != trial_inputs.tokens.key
    *_, last = run(Trial(recipe, other, 0, target))
    assert last["agreement"] > 0.4


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"distillation.alpha": 1.2}, "distillation.alpha: got 1.2"),
        ({"distillation.temperature": 0}, "distillation.temperature: got 0"),
        ({"student.depth": 0}, "student.depth: got 0"),
        ({"training.learning_rate": 0}, "training.learning_rate: got 0"),
        ({"student.dept": 1}, "student.dept: no such setting; did you mean 'student.depth'?"),
    ],
)
def test_a_recipe_that_makes_no_trial_is_refused(recipe: Recipe, changes: dict[str, Any], part: str) -> None:
    with pytest.raises(SpecError) as caught:
        recipe.with_dotted(changes)
    assert part in str(caught.value)


def test_quality_against_the_teacher(trial_inputs: TrialInputs) -> None:
    rows = trial_inputs.rows("validation", Worker())
    taught = rows.teacher_logits(np.arange(len(rows)))
    same = student_quality(trial_inputs.task, taught, rows)
    assert (same["agreement"], same["retention"]) == (1, 1)
    against = student_quality(trial_inputs.task, -taught, rows)
    assert against["agreement"] == 0
    assert against["accuracy"] == pytest.approx(1 - same["accuracy"])
    assert against["retention"] == pytest.approx(against["accuracy"] / same["accuracy"])
    assert against["loss"] > same["loss"]
