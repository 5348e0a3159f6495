"""Trials of each task: what a batch has beside an answer changes nothing, and neither do workers and interruptions."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdray.data.rows import Rows
from kdray.data.splits import Data, load_splits
from kdray.data.tokens import tokenise
from kdray.losses.distillation import Distillation, Targets
from kdray.models.pretrained import Pretrained
from kdray.slots.job import Report, Worker
from kdray.slots.local import LocalSlots
from kdray.storage.paths import StoragePaths
from kdray.teacher.teacher import FineTuning, Teacher, obtain_source, obtain_teacher
from kdray.training.settings import Training
from kdray.training.trial import EvaluateStudent, Recipe, Trial, TrialInputs
from tests.task_inputs import KINDS, TEACHER
from tests.training.two_workers import run_two_workers

InputsOf = Callable[[str], TrialInputs]
TIMES = ("examples_per_s", "train_seconds", "eval_seconds")
TRAINING = Training(
    epochs=2,
    batch_size=33,
    learning_rate=1e-3,
    precision="fp32",
    checkpoint_evaluations=1,
    evaluations_per_epoch=2,
)
"""200 rows and more: the last batch is smaller, and two workers get parts of different sizes."""

RELATIONS = Distillation(
    soft="dist", dist_gamma=4.0, trust=0.5, alpha=0.9, alpha_end=0.4, temperature_end=1.0, schedule="cosine"
)
"""A term that relates the answers of a batch with each other, with weights and a schedule."""

every_kind = pytest.mark.parametrize("kind", KINDS)


def without_times(reports: list[Report]) -> list[Report]:
    return [{name: value for name, value in report.items() if name not in TIMES} for report in reports]


def trial_of(inputs: TrialInputs, target: Path) -> Trial:
    recipe = Recipe(training=TRAINING, distillation=Distillation(alpha=0.6)).with_dotted({"student.depth": 1})
    return Trial(recipe=recipe, inputs=inputs, seed=0, target=target / "student")


def losses_of(inputs: TrialInputs, rows: np.ndarray, multiple: int = 1) -> np.ndarray:
    """The loss of each answer of these rows in one batch (A), with a student that differs from the teacher."""
    all_rows = inputs.rows("train", Worker())
    torch.manual_seed(3)
    model = Recipe().with_dotted({"student.depth": 1}).student.build(inputs.source.model(), 0)
    distribution = inputs.task.distribution(all_rows.gold)
    batch = all_rows.batch(rows, multiple)
    with torch.inference_mode():
        outputs = batch.answers(model(**batch.inputs).logits)
        targets = Targets(batch.gold, batch.teacher_logits_AxC)
        return Distillation(alpha=0.5).loss(outputs, targets, distribution.for_data_units()).total_A.numpy()


# What is in a batch beside an answer ----------------------------------------------------------------------------------


@every_kind
def test_padding_and_other_rows_change_no_answer(inputs_of: InputsOf, kind: str) -> None:
    """Padding, special tokens and the other sub-words of a word never enter a loss."""
    inputs = inputs_of(kind)
    rows = inputs.rows("train", Worker())
    order = np.argsort(rows.lengths, kind="stable")
    few, many = order[:5], np.concatenate([order[-7:], order[:5], order[50:60]])
    alone, wider, beside = losses_of(inputs, few), losses_of(inputs, few, multiple=16), losses_of(inputs, many)
    first = len(rows.answers(order[-7:]))
    assert len(alone) == len(wider) == len(rows.answers(few))
    np.testing.assert_allclose(wider, alone, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(beside[first : first + len(alone)], alone, rtol=1e-4, atol=1e-6)


def test_a_tagger_answers_for_each_word_of_the_batch_only(inputs_of: InputsOf) -> None:
    """The outputs of all other tokens are made nan: the loss and its gradient stay as they are."""
    inputs = inputs_of("token_classification")
    rows = inputs.rows("train", Worker())
    batch = rows.batch(np.arange(20), 8)
    assert batch.places_A is not None
    logits = torch.randn(*batch.inputs["input_ids"].shape, len(rows.labels), requires_grad=True)
    is_answer = torch.zeros(logits.shape[:2].numel(), dtype=torch.bool)
    is_answer[batch.places_A] = True
    hidden = torch.where(is_answer.reshape(logits.shape[:2])[:, :, None], logits, torch.nan)
    targets = Targets(batch.gold, batch.teacher_logits_AxC)
    distribution = inputs.task.distribution(rows.gold)
    Distillation().loss(batch.answers(hidden), targets, distribution).total_A.sum().backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(dim=-1).flatten() > 0
    assert torch.equal(touched, is_answer)
    assert not torch.isnan(logits.grad).any()
    # Each word is answered at one token, and special tokens (here the first and the last one of a window) at none.
    assert len(batch.places_A) == len(batch.gold) == is_answer.sum()
    assert not is_answer.reshape(logits.shape[:2])[:, 0].any()


@every_kind
def test_the_gradient_of_a_batch_does_not_depend_on_its_order(inputs_of: InputsOf, kind: str) -> None:
    inputs = inputs_of(kind)
    rows = inputs.rows("train", Worker())
    gradients = [
        _gradient(inputs, rows, indices) for indices in (np.arange(30), np.random.default_rng(0).permutation(30))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def _gradient(inputs: TrialInputs, rows: Rows, indices: np.ndarray) -> torch.Tensor:
    model = Recipe().with_dotted({"student.depth": 1}).student.build(inputs.source.model(), 0)
    distribution = inputs.task.distribution(rows.gold).start_training(model)
    answers, with_gold = rows.count_answers(indices)
    assert answers == with_gold == len(rows.answers(indices))
    batch = rows.batch(indices)
    targets = Targets(batch.gold, batch.teacher_logits_AxC)
    loss = Distillation().loss(batch.answers(model(**batch.inputs).logits), targets, distribution)
    loss.total_A.mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


# One worker and two ---------------------------------------------------------------------------------------------------


def trials_of(inputs: dict[str, TrialInputs], target: Path) -> dict[str, Trial]:
    """A trial of each task, and one with relations."""
    trials = {kind: trial_of(each, target / kind) for kind, each in inputs.items()}
    tagger = trials["token_classification"]
    rows = len(tagger.inputs.rows("train", Worker()))
    # The last batch then has one row only, and the second of two workers has none of them.
    batch_size = next(size for size in range(20, rows) if rows % size == 1)
    recipe = tagger.recipe.with_dotted({"training.batch_size": batch_size})
    recipe = recipe.model_copy(update={"distillation": RELATIONS})
    return trials | {"relations": replace(tagger, recipe=recipe, target=target / "relations" / "student")}


def _train_rank(worker: Worker, folder: Path, inputs: dict[str, TrialInputs]) -> None:
    """The main function of one process of a slot: train the students; rank 0 writes the reports."""
    reports = {name: list(trial(worker)) for name, trial in trials_of(inputs, folder).items()}
    if worker.rank == 0:
        torch.save(reports, folder / "reports.pt")


def test_two_workers_train_the_same_students_as_one(inputs_of: InputsOf, tmp_path: Path) -> None:
    """All students in one test, because it takes long to start the workers."""
    inputs = {kind: inputs_of(kind) for kind in KINDS}
    run_two_workers(_train_rank, tmp_path, inputs)
    reports = torch.load(tmp_path / "reports.pt", weights_only=True)
    for name, alone in trials_of(inputs, tmp_path / "alone").items():
        expected = list(alone(Worker()))
        assert len(reports[name]) == len(expected) == 4
        for report, own in zip(without_times(reports[name]), without_times(expected), strict=True):
            assert report == pytest.approx(own, rel=2e-3, abs=2e-3), name
        one, two = (Pretrained(folder, "").model() for folder in (alone.target, tmp_path / name / "student"))
        # AdamW divides by the size of the gradient, so rounding matters where a gradient is almost zero.
        assert _distance(one, two) < 1e-2
        thresholds = [getattr(model.config, "thresholds", []) for model in (one, two)]
        assert thresholds[1] == pytest.approx(thresholds[0], rel=1e-2)


def _distance(one: nn.Module, other: nn.Module) -> float:
    weights = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in (one, other)]
    return float(torch.dist(*weights) / weights[0].norm())


# Interruptions, and the student on disk -------------------------------------------------------------------------------


@every_kind
def test_a_trial_that_is_cut_off_continues_with_the_same_numbers(
    inputs_of: InputsOf, kind: str, tmp_path: Path
) -> None:
    inputs = inputs_of(kind)
    uninterrupted, interrupted = trial_of(inputs, tmp_path / "one"), trial_of(inputs, tmp_path / "other")
    whole = Worker()
    expected = without_times(list(uninterrupted(whole)))
    cut_off = interrupted(Worker())
    next(cut_off), next(cut_off)
    cut_off.close()
    assert interrupted.target.with_name("checkpoint.pt").exists()
    second = Worker()
    assert without_times(list(interrupted(second))) == expected
    assert 0 < second.progress < whole.progress  # it did not start again
    files = [(trial.target / "model.safetensors").read_bytes() for trial in (uninterrupted, interrupted)]
    assert files[0] == files[1]
    configs = [(trial.target / "config.json").read_text() for trial in (uninterrupted, interrupted)]
    assert configs[0] == configs[1]


@every_kind
def test_the_student_on_disk_has_the_reported_figures(inputs_of: InputsOf, kind: str, tmp_path: Path) -> None:
    """Its answers are in the units of the data, and its thresholds are in its configuration."""
    inputs = inputs_of(kind)
    trial = trial_of(inputs, tmp_path)
    *_, last = trial(Worker())
    with LocalSlots() as slots:
        (loaded,) = slots.run(EvaluateStudent(inputs, Pretrained(trial.target, "x"), "validation"), "evaluate")
    names = set(inputs.task.metric_names(inputs.tokens.labels)) | {"loss", "agreement", "retention"}
    assert names <= set(loaded)
    for name in names:
        assert loaded[name] == pytest.approx(last[name], rel=1e-4, abs=1e-4), name


@every_kind
def test_a_student_without_distillation_needs_no_teacher(inputs_of: InputsOf, kind: str, tmp_path: Path) -> None:
    """The retention compares with the teacher all the same; the training has the hard term only."""
    trial = trial_of(inputs_of(kind), tmp_path)
    recipe = trial.recipe.model_copy(update={"distillation": trial.recipe.distillation.labels_only()})
    *_, last = Trial(recipe=recipe, inputs=trial.inputs, seed=0, target=trial.target)(Worker())
    assert last["share_hard"] == pytest.approx(1)
    assert "share_soft" not in last


@every_kind
def test_the_reported_loss_is_the_mean_over_all_answers(inputs_of: InputsOf, kind: str, tmp_path: Path) -> None:
    """With a learning rate near 0 the reported loss is that of the untrained model, whatever the batches are."""
    inputs = inputs_of(kind)
    rows = inputs.rows("train", Worker())
    training = Training(epochs=1, batch_size=33, learning_rate=1e-30, precision="fp32", weight_decay=0)
    settings = Distillation(alpha=0.3)
    trial = trial_of(inputs, tmp_path)
    recipe = trial.recipe.model_copy(update={"training": training, "distillation": settings})
    recipe = recipe.with_dotted({"student.dropout": 0.0})
    model = recipe.student.build(inputs.source.model(), 0)
    distribution = inputs.task.distribution(rows.gold).start_training(model)
    batch = rows.batch(np.arange(len(rows)))
    with torch.inference_mode():
        outputs = batch.answers(model(**batch.inputs).logits)
    loss = settings.loss(outputs, Targets(batch.gold, batch.teacher_logits_AxC), distribution)
    (report,) = Trial(recipe=recipe, inputs=inputs, seed=0, target=trial.target)(Worker())
    assert report["train_loss"] == pytest.approx(float(loss.total_A.mean()), rel=1e-4)


# Units of numbers -----------------------------------------------------------------------------------------------------


def fine_tuned(folder: Path, factor: float, offset: float) -> tuple[Pretrained, Report, np.ndarray]:
    """A new model that is trained on similarities in other units, its last report, and the gold of the validation."""
    generated = KINDS["regression"][1]
    for split in ("train", "validation", "test"):
        columns = generated.rows(split)
        rows = zip(columns["text"], columns["pair"], columns["score"], strict=True)
        lines = [
            json.dumps({"text": text, "pair": pair, "score": factor * score + offset}) for text, pair, score in rows
        ]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    task, storage = KINDS["regression"][0], StoragePaths(folder / "storage")
    splits = load_splits(Data(source=str(folder)), task)
    settings = Teacher(model=TEACHER, training=Training(epochs=2, learning_rate=3e-3, precision="fp32"))
    start = obtain_source(settings, task, splits, storage, seed=0)
    tokens = tokenise(splits, task, start.tokenizer(), storage)
    reports: list[Report] = []
    with LocalSlots() as slots:
        tuning = FineTuning(source=start, tokens=tokens, task=task, seed=0)
        model = obtain_teacher(settings, tuning, storage, slots, reports.append)
    return model, reports[-1], tokens.rows("validation").gold


@pytest.mark.parametrize(("factor", "offset"), [(1000.0, 1e6), (1e-4, -2.0)])
def test_a_new_model_learns_numbers_in_any_units(tmp_path: Path, factor: float, offset: float) -> None:
    """The training is the same to rounding, although the first answers of the model, which are near 0, are far away."""
    _, own, gold = fine_tuned(tmp_path / "own", 1.0, 0.0)
    model, report, other_gold = fine_tuned(tmp_path / "other", factor, offset)
    np.testing.assert_allclose(other_gold, factor * gold + offset)
    assert report["train_loss"] == pytest.approx(own["train_loss"], rel=1e-2)
    assert own["mse"] < 1.3 * gold.var()  # no worse than answers near the mean
    assert report["mse"] == pytest.approx(factor**2 * own["mse"], rel=2e-2)
    assert model.model().config.problem_type == "regression"
