"""Trials of language models: interruptions, one worker and two, stored and live answers, inner terms."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdray.data.rows import Rows
from kdray.evaluation.outputs import evaluation_mode, kept_outputs
from kdray.losses.distillation import Distillation, Targets
from kdray.losses.vocabulary import VOCABULARY
from kdray.models import vocabulary_head
from kdray.models.pretrained import Pretrained
from kdray.models.vocabulary_head import late_head
from kdray.slots.job import Report, Worker
from kdray.storage.paths import StoragePaths
from kdray.training.signal import LiveSignal
from kdray.training.trial import Recipe, Trial, TrialInputs
from tests.training.language_inputs import (
    CAUSAL,
    FRESH,
    LANGUAGE_TASKS,
    STORED,
    make_language_inputs,
    write_documents,
)
from tests.training.test_tasks import TRAINING, without_times
from tests.training.two_workers import run_two_workers

InputsOf = Callable[[str], TrialInputs]
INNER = {"distillation.hidden_cosine": 1.0, "distillation.relations": 0.5}
every_kind = pytest.mark.parametrize("kind", LANGUAGE_TASKS)


@pytest.fixture(scope="module")
def language_inputs_of(tmp_path_factory: pytest.TempPathFactory) -> InputsOf:
    folder = tmp_path_factory.mktemp("language")
    documents = write_documents(folder / "documents")
    return cache(lambda kind: make_language_inputs(kind, documents, StoragePaths(folder / "storage")))


def trial_of(inputs: TrialInputs, target: Path, **settings: Any) -> Trial:
    changes = {name.replace("__", "."): value for name, value in settings.items()}
    recipe = Recipe(training=TRAINING, distillation=Distillation(alpha=0.6, trust=0.5))
    recipe = recipe.with_dotted({"student.depth": 1, "training.batch_size": 13, **changes})
    return Trial(recipe=recipe, inputs=inputs, seed=0, target=target / "student")


def weights(trial: Trial) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in Pretrained(trial.target, "").model().parameters()])


def close(reports: list[Report], others: list[Report], within: float = 1e-3) -> None:
    assert len(reports) == len(others) == 4
    for report, other in zip(without_times(reports), without_times(others), strict=True):
        assert report == pytest.approx(other, rel=within, abs=within)


# Interruptions --------------------------------------------------------------------------------------------------------


@every_kind
def test_a_trial_that_is_cut_off_continues_with_the_same_numbers(
    language_inputs_of: InputsOf, kind: str, tmp_path: Path
) -> None:
    """Also in the middle of a pass, with the masks of that pass."""
    inputs = language_inputs_of(kind)
    settings = {"student__dropout": 0.1, "training__microbatch": 5}
    uninterrupted, interrupted = (trial_of(inputs, tmp_path / name, **settings) for name in ("one", "other"))
    whole = Worker()
    expected = without_times(list(uninterrupted(whole)))
    for evaluations in (1, 3):
        cut_off = interrupted(Worker())
        for _ in range(evaluations):
            next(cut_off)
        next(cut_off)  # the checkpoint is written after the report
        cut_off.close()
        assert interrupted.target.with_name("checkpoint.pt").exists()
    second = Worker()
    assert without_times(list(interrupted(second))) == expected
    assert 0 < second.progress < whole.progress
    files = [(trial.target / "model.safetensors").read_bytes() for trial in (uninterrupted, interrupted)]
    assert files[0] == files[1]


# One worker and two ---------------------------------------------------------------------------------------------------


def trials_of(inputs: dict[str, TrialInputs], target: Path) -> dict[str, Trial]:
    """A trial of each kind, with inner terms, microbatches, and a last batch of one row."""
    trials = {}
    for kind, each in inputs.items():
        rows = len(each.rows("train", Worker())) // each.tokens.layout.repeats
        size = next(size for size in range(12, rows) if rows % size == 1)
        trials[kind] = trial_of(each, target / kind, training__batch_size=size)
        trials[f"{kind} in pieces"] = trial_of(
            each, target / f"{kind} in pieces", training__batch_size=size, training__microbatch=5
        )
    fresh = trial_of(
        inputs[FRESH],
        target / "inner",
        training__microbatch=5,
        student__hidden=16,
        **{name.replace(".", "__"): value for name, value in INNER.items()},
    )
    return {**trials, "inner": fresh}


def _train_rank(worker: Worker, folder: Path, inputs: dict[str, TrialInputs]) -> None:
    reports = {name: list(trial(worker)) for name, trial in trials_of(inputs, folder).items()}
    if worker.rank == 0:
        torch.save(reports, folder / "reports.pt")


def test_two_workers_and_microbatches_train_the_same_students(language_inputs_of: InputsOf, tmp_path: Path) -> None:
    """All students in one test, because it takes long to start the workers."""
    inputs = {kind: language_inputs_of(kind) for kind in LANGUAGE_TASKS}
    run_two_workers(_train_rank, tmp_path, inputs)
    shared = torch.load(tmp_path / "reports.pt", weights_only=True)
    alone = trials_of(inputs, tmp_path / "alone")
    own = {name: list(trial(Worker())) for name, trial in alone.items()}
    for name, trial in alone.items():
        close(shared[name], own[name], 2e-3)
        two = weights(replace(trial, target=tmp_path / name / "student"))
        # AdamW divides by the size of the gradient, so rounding matters where a gradient is almost zero.
        assert torch.dist(weights(trial), two) < 1e-2 * two.norm(), name
    for kind in LANGUAGE_TASKS:
        close(own[f"{kind} in pieces"], own[kind], 2e-3)


# Stored and live ------------------------------------------------------------------------------------------------------


def losses(inputs: TrialInputs, rows: Rows, live: bool) -> list[torch.Tensor]:
    """The losses of the answers of two batches, with stored or with live outputs of the teacher."""
    student = Recipe().with_dotted({"student.depth": 1}).student.build(inputs.source.model(), 0).eval()
    teacher, found = inputs.source.model(), []
    for start in (0, 9):
        batch = rows.batch(np.arange(start, start + 9))
        with torch.no_grad(), evaluation_mode(teacher):
            outputs = kept_outputs(teacher, batch) if live else batch.teacher_logits_AxC
        with torch.no_grad():
            logits = batch.answers(student(**batch.inputs).logits)
            found.append(Distillation(trust=0.5).loss(logits, Targets(batch.gold, outputs), VOCABULARY).total_A)
    return found


@pytest.mark.parametrize("kind", [STORED, CAUSAL])
def test_stored_and_live_answers_give_the_same_loss(language_inputs_of: InputsOf, kind: str) -> None:
    inputs = language_inputs_of(kind)
    rows = inputs.rows("train", Worker())
    for stored, live in zip(losses(inputs, rows, False), losses(inputs, rows, True), strict=True):
        torch.testing.assert_close(stored, live, rtol=1e-4, atol=1e-4)


def test_fresh_masks_have_no_stored_answers(language_inputs_of: InputsOf, tmp_path: Path) -> None:
    inputs = language_inputs_of(FRESH)
    assert inputs.rows("train", Worker()).batch(np.arange(3)).teacher_logits_AxC is None
    reports = list(trial_of(inputs, tmp_path)(Worker()))
    assert {"share_soft", "share_hard"} <= set(reports[0])


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({}, 1),
        (INNER, 1),
        ({**INNER, "distillation.inner_first": 0.5}, 1),
        ({"distillation.alpha": 0.0}, 0),
        ({"distillation.alpha": 0.0, **INNER}, 1),
        ({"distillation.alpha": 0.0, "distillation.alpha_end": 0.5, "distillation.schedule": "linear"}, None),
    ],
)
def test_a_live_teacher_runs_once_for_each_batch(
    language_inputs_of: InputsOf, tmp_path: Path, settings: dict[str, Any], passes: int | None
) -> None:
    """None: at all steps but the first one, at which nothing reads its answers."""
    inputs, worker = language_inputs_of(FRESH), Worker()
    teacher = worker.cached(("model", inputs.source.key), inputs.source.model)
    late_head(teacher)  # the check of its last layer runs it, once
    lengths: list[int] = []
    teacher.register_forward_pre_hook(
        lambda _model, _inputs, named: lengths.append(len(named["input_ids"])), with_kwargs=True
    )
    changes = {name.replace(".", "__"): value for name, value in settings.items()}
    trial = trial_of(inputs, tmp_path, training__epochs=1, training__evaluations_per_epoch=1, **changes)
    (report,) = trial(worker)
    steps = int(report["step"])
    # Rows of two tokens are those of the search for the widths of its layers.
    assert len([length for length in lengths if length > 1]) == (steps - 1 if passes is None else steps * passes)
    assert np.isfinite(report["train_loss"])


def test_the_shares_of_all_terms_are_reported(language_inputs_of: InputsOf, tmp_path: Path) -> None:
    changes = {name.replace(".", "__"): value for name, value in INNER.items()}
    inputs = replace(language_inputs_of(CAUSAL), signal=LiveSignal(language_inputs_of(CAUSAL).source, "fp32"))
    *_, last = trial_of(inputs, tmp_path, **changes)(Worker())
    shares = {name: last[f"share_{name}"] for name in ("soft", "hard", "hidden_cosine", "relations")}
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) > 0


@every_kind
def test_parts_train_the_same_student(
    language_inputs_of: InputsOf, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = language_inputs_of(kind)
    whole = trial_of(inputs, tmp_path / "whole")
    expected = list(whole(Worker()))
    monkeypatch.setattr(vocabulary_head, "LOGITS_AT_ONCE", 500)
    parts = trial_of(inputs, tmp_path / "parts")
    close(list(parts(Worker())), expected)
    assert torch.dist(weights(parts), weights(whole)) < 1e-2 * weights(whole).norm()
