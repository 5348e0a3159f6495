"""training.microbatch: the gradients of a step's rows are added up, so its numbers stay the same."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray import tune

from kdray.data.tokens import TokenSet
from kdray.errors import SpecError
from kdray.losses.distillation import Distillation
from kdray.models.pretrained import Pretrained
from kdray.slots.job import Report, Worker
from kdray.slots.local import LocalSlots
from kdray.storage.paths import StoragePaths
from kdray.sweep import Sweep
from kdray.tasks.text_classification import TextClassification
from kdray.teacher.teacher import FineTuning, Teacher, obtain_teacher
from kdray.training.settings import Training
from kdray.training.signal import LiveSignal
from kdray.training.trial import Trial, TrialInputs
from tests.task_inputs import KINDS
from tests.training.test_tasks import trial_of, without_times
from tests.training.two_workers import run_two_workers

InputsOf = Callable[[str], TrialInputs]
MakeSweep = Callable[..., Sweep]
NAMES = (*KINDS, "text_classification", "inner")
INNER = Distillation(alpha=0.6, hidden_mse=1.0, hidden_first=0.5, relations=1.0)


def trials_of(inputs: dict[str, TrialInputs], target: Path, microbatch: int | None) -> dict[str, Trial]:
    """A trial of each task, and one with inner terms."""
    trials = {kind: trial_of(each, target / kind) for kind, each in inputs.items()}
    classes = trials["text_classification"]
    signal = LiveSignal(classes.inputs.source, "fp32")
    trials["inner"] = replace(
        classes,
        inputs=replace(classes.inputs, signal=signal),
        recipe=classes.recipe.model_copy(update={"distillation": INNER}),
        target=target / "inner" / "student",
    )
    changes = {"training.microbatch": microbatch, "student.dropout": 0.0}
    return {name: replace(trial, recipe=trial.recipe.with_dotted(changes)) for name, trial in trials.items()}


@pytest.fixture
def inputs(inputs_of: InputsOf, trial_inputs: TrialInputs) -> dict[str, TrialInputs]:
    return {**{kind: inputs_of(kind) for kind in KINDS}, "text_classification": trial_inputs}


def close(reports: list[Report], others: list[Report], name: str) -> None:
    assert len(reports) == len(others) == 4
    for report, other in zip(without_times(reports), without_times(others), strict=True):
        assert report == pytest.approx(other, rel=3e-3, abs=3e-3), name


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in Pretrained(folder, "").model().parameters()])


def _train_rank(worker: Worker, folder: Path, inputs: dict[str, TrialInputs]) -> None:
    # 33 rows a step: one worker has 17 of them and two pieces of at most 16, the other one has one piece.
    reports = {name: list(trial(worker)) for name, trial in trials_of(inputs, folder, 16).items()}
    if worker.rank == 0:
        torch.save(reports, folder / "reports.pt")


@pytest.mark.slow
def test_pieces_give_the_numbers_of_whole_batches(inputs: dict[str, TrialInputs], tmp_path: Path) -> None:
    """With one worker and with two. All students in one test, because it takes long to start the workers."""
    run_two_workers(_train_rank, tmp_path, inputs)
    shared = torch.load(tmp_path / "reports.pt", weights_only=True)
    whole, pieces = (trials_of(inputs, tmp_path / str(size), size) for size in (None, 7))
    assert tuple(whole) == NAMES
    for name, trial in whole.items():
        expected = list(trial(Worker()))
        close(list(pieces[name](Worker())), expected, name)
        close(shared[name], expected, name)
        one = weights(trial.target)
        for target in (pieces[name].target, tmp_path / name / "student"):
            # AdamW divides by the size of the gradient, so rounding matters where a gradient is almost zero.
            assert torch.dist(weights(target), one) < 1e-2 * one.norm(), name


def test_a_piece_has_at_most_so_many_rows(
    trial_inputs: TrialInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, sizes = trial_inputs.rows("train", Worker()), []
    compute = type(rows).batch

    def batch(self: Any, indices: np.ndarray, multiple: int = 1) -> Any:
        sizes.append(len(indices))
        return compute(self, indices, multiple)

    trial = trial_of(trial_inputs, tmp_path)
    recipe = trial.recipe.with_dotted({"training.microbatch": 10, "training.epochs": 1})
    monkeypatch.setattr(
        "kdray.training.trial.compute_logits", lambda *_: trial_inputs.rows("validation", Worker()).teacher_logits()
    )
    monkeypatch.setattr(type(rows), "batch", batch)
    list(replace(trial, recipe=recipe)(Worker()))
    assert max(sizes) == 10
    assert sum(sizes) == len(rows)
    assert sizes.count(10) == len(rows) // 33 * 3 + len(rows) % 33 // 10


def test_a_teacher_may_be_trained_in_pieces(
    teacher_settings: Teacher, source: Pretrained, tokens: TokenSet, task: TextClassification, tmp_path: Path
) -> None:
    found = []
    for size in (None, 5):
        training = Training(epochs=4, batch_size=32, learning_rate=3e-3, precision="fp32", microbatch=size)
        reports: list[Report] = []
        with LocalSlots() as slots:
            tuning = FineTuning(source=source, tokens=tokens, task=task, seed=0)
            settings = teacher_settings.model_copy(update={"training": training})
            teacher = obtain_teacher(settings, tuning, StoragePaths(tmp_path / str(size)), slots, reports.append)
        found.append((reports, weights(teacher.folder)))
    (whole, one), (pieces, other) = found
    assert without_times(pieces)[-1]["train_loss"] == pytest.approx(whole[-1]["train_loss"], rel=1e-3)
    assert torch.dist(one, other) < 1e-2 * one.norm()


# Settings -------------------------------------------------------------------------------------------------------------


def test_it_is_in_no_record_while_it_is_not_given() -> None:
    assert "microbatch" not in Training().model_dump()
    assert Training(microbatch=4).model_dump()["microbatch"] == 4


def test_it_may_be_searched(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(space={"training.microbatch": [4, 8], "student.depth": tune.randint(1, 3)})
    assert sweep.possible_values("training.microbatch") == (4, 8)
    assert sweep.recipe.with_dotted({"training.microbatch": 8}).training.microbatch == 8


@pytest.mark.parametrize("size", [0, -1])
def test_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(SpecError, match=rf"Training\.microbatch: got {size}"):
        Training(microbatch=size)


@pytest.mark.parametrize(
    "fields",
    [
        {"distillation": {"soft": "dist"}, "training": {"microbatch": 8}},
        {"distillation": {"soft": "dist"}, "space": {"training.microbatch": [4, 8]}},
        {"space": {"distillation.soft": ["kl", "dist"]}, "training": {"microbatch": 8}},
        {
            "distillation": {"soft": "dist", "dist_gamma": 0.0},
            "space": {"distillation.dist_gamma": [0.0, 1.0]},
            "training": {"microbatch": 8},
        },
    ],
)
def test_a_term_of_the_whole_batch_is_refused(make_sweep: MakeSweep, fields: dict[str, Any]) -> None:
    expected = (
        r"training\.microbatch: got 8, but distillation\.soft=dist relates all answers of a batch with each other, so "
        r"they must be computed at once\. Leave microbatch out, or set distillation\.dist_gamma=0\."
    )
    with pytest.raises(SpecError, match=expected):
        make_sweep(**fields)


def test_the_correlation_within_an_answer_is_allowed(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(distillation={"soft": "dist", "dist_gamma": 0.0}, training={"microbatch": 8})
    assert sweep.training.microbatch == 8
