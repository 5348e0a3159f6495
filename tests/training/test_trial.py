"""A trial trains one student, writes it so that plain transformers can load it, and can be cut off at any report."""

from pathlib import Path
from typing import Any

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
from kdray.tasks.task import Outputs
from kdray.training.trial import EvaluateStudent, Recipe, Trial, TrialInputs

TIMES = ("examples_per_s", "train_seconds", "eval_seconds")


def without_times(reports: list[Report]) -> list[Report]:
    return [{name: value for name, value in report.items() if name not in TIMES} for report in reports]


def make_trial(recipe: Recipe, inputs: TrialInputs, target: Path, seed: int = 0) -> Trial:
    return Trial(recipe=recipe, inputs=inputs, seed=seed, target=target)


def run(trial: Trial) -> list[Report]:
    with LocalSlots() as slots:
        return list(slots.run(trial, "trial-0"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "trials" / "0000" / "student"


def test_a_trial_reports_its_metrics_and_writes_its_student(
    trial_inputs: TrialInputs, recipe: Recipe, target: Path
) -> None:
    reports = run(make_trial(recipe, trial_inputs, target))
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
    assert {path.name for path in target.parent.iterdir()} == {"student", "ended.json"}  # the checkpoint is deleted
    assert AutoModelForSequenceClassification.from_pretrained(target).config.num_hidden_layers == 2


def test_the_student_on_disk_is_the_evaluated_student(
    trial_inputs: TrialInputs, recipe: Recipe, target: Path, splits: Splits
) -> None:
    *_, last = run(make_trial(recipe.with_dotted({"training.precision": "bf16"}), trial_inputs, target))
    with LocalSlots() as slots:
        (loaded,) = slots.run(EvaluateStudent(trial_inputs, Pretrained(target, "student"), "validation"), "evaluate")
    assert all(loaded[name] == pytest.approx(last[name], rel=1e-5) for name in loaded)
    assert loaded["accuracy"] == last["accuracy"]
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    texts, labels = list(splits.validation["text"]), list(splits.validation["label"])
    with torch.inference_mode():
        logits = model(**tokenizer(texts, truncation=True, max_length=16, padding=True, return_tensors="pt")).logits
    assert (logits.argmax(1).numpy() == labels).mean() == last["accuracy"]
    assert model.config.id2label == {0: "negative", 1: "positive"}


def test_the_same_seed_gives_the_same_numbers(trial_inputs: TrialInputs, recipe: Recipe, tmp_path: Path) -> None:
    random = recipe.with_dotted({"student.layers": "random", "student.dropout": 0.1})
    one, same, other = (
        without_times(run(make_trial(random, trial_inputs, tmp_path / folder / "student", seed)))
        for folder, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == same != other


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_trial_that_is_cut_off_continues_with_the_same_numbers(
    trial_inputs: TrialInputs, recipe: Recipe, tmp_path: Path, precision: str
) -> None:
    changed = recipe.with_dotted(
        {"training.precision": precision, "student.dropout": 0.1, "training.evaluations_per_epoch": 2}
    )
    uninterrupted = make_trial(changed, trial_inputs, tmp_path / "uninterrupted" / "student")
    interrupted = make_trial(changed, trial_inputs, tmp_path / "interrupted" / "student")
    expected = without_times(run(uninterrupted))
    first, second, third = Worker(), Worker(), Worker()
    cut_off = interrupted(first)
    next(cut_off), next(cut_off)
    cut_off.close()
    assert not interrupted.target.exists()
    assert without_times(list(interrupted(second))) == expected  # the reports of the first worker come again
    assert first.progress > 0
    assert second.progress < 20  # steps of a training without a checkpoint
    assert without_times(list(interrupted(third))) == expected
    assert third.progress == 0  # the training was complete
    files = [(trial.target / "model.safetensors").read_bytes() for trial in (uninterrupted, interrupted)]
    assert files[0] == files[1]


def test_a_trial_that_is_stopped_writes_no_student(trial_inputs: TrialInputs, recipe: Recipe, target: Path) -> None:
    with LocalSlots() as slots:
        reports = slots.run(make_trial(recipe, trial_inputs, target), "trial-0")
        next(reports)
        slots.cancel("trial-0")
        assert list(reports) == []
    assert not target.exists()


def test_a_learning_rate_that_is_far_too_high_fails_with_a_reason(
    trial_inputs: TrialInputs, recipe: Recipe, target: Path
) -> None:
    with pytest.raises(JobError, match=r"not finite \(nan or inf\) by step 10; try a lower learning rate"):
        run(make_trial(recipe.with_dotted({"training.learning_rate": 1e30}), trial_inputs, target))
    assert not target.exists()


def test_values_cached_in_a_worker_do_not_change_the_numbers(
    trial_inputs: TrialInputs, recipe: Recipe, tmp_path: Path
) -> None:
    """Two trials run one after the other on the same slot, and the first does not change the cached source."""
    with LocalSlots() as slots:
        first, second = (
            without_times(list(slots.run(make_trial(recipe, trial_inputs, tmp_path / name / "student"), name)))
            for name in "ab"
        )
    assert first == second


def test_a_student_with_other_token_ids_learns_from_the_same_logits(
    trial_inputs: TrialInputs, recipe: Recipe, splits: Splits, source: Pretrained, target: Path, tmp_path: Path
) -> None:
    """The logits are stored by example, not by token ids."""
    shorter = trial_inputs.task.model_copy(update={"max_length": 8})
    tokens = tokenise(splits, shorter, source.tokenizer(), StoragePaths(tmp_path))
    other = TrialInputs(task=shorter, source=source, tokens=tokens, transfer=trial_inputs.transfer)
    assert tokens.key != trial_inputs.tokens.key
    *_, last = run(make_trial(recipe, other, target))
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
def test_a_recipe_with_a_wrong_setting_is_refused(recipe: Recipe, changes: dict[str, Any], part: str) -> None:
    with pytest.raises(SpecError) as caught:
        recipe.with_dotted(changes)
    assert part in str(caught.value)


def test_quality_compares_the_student_with_its_teacher(trial_inputs: TrialInputs) -> None:
    rows = trial_inputs.rows("validation", Worker())
    teacher = Outputs(rows.teacher_logits())
    same = student_quality(trial_inputs.task, teacher, teacher, rows)
    assert (same["agreement"], same["retention"]) == (1, 1)
    opposite = student_quality(trial_inputs.task, Outputs(-teacher.logits_AxC), teacher, rows)
    assert opposite["agreement"] == 0
    assert opposite["accuracy"] == pytest.approx(1 - same["accuracy"])
    assert opposite["retention"] == pytest.approx(opposite["accuracy"] / same["accuracy"])
    assert opposite["loss"] > same["loss"]
