"""The verdict of a confirmation for taggers, several labels and numbers, on outputs with a known order of quality."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from kdray.choice.answers import ConfirmationAnswers
from kdray.choice.reruns import Rerun, Role
from kdray.choice.rule import Choose
from kdray.choice.verdict import ExchangeTest, Verdict, reach_verdict
from kdray.evaluation.quality import student_quality
from kdray.evaluation.trial_record import TrialRecord
from kdray.slots.job import Worker
from kdray.tasks.task import Outputs
from kdray.training.trial import Recipe, TrialInputs
from tests.task_inputs import KINDS

InputsOf = Callable[[str], TrialInputs]
COSTS = {"latency_ms": 1.0, "speedup": 2.0}


def noisy(inputs: TrialInputs, noise: float, seed: int) -> Outputs:
    """Outputs for the test rows that differ from perfect ones by noise; the thresholds are 0.5."""
    rows = inputs.rows("test", Worker())
    gold = rows.gold
    perfect = gold[:, None]
    if gold.dtype.kind != "f":
        perfect = 4.0 * (gold if gold.ndim == 2 else np.eye(len(rows.labels))[gold]) - 2
    drawn = np.random.default_rng(seed).normal(0, noise, perfect.shape)
    thresholds_C = np.full(len(rows.labels), 0.5) if gold.ndim == 2 else None
    return Outputs((perfect + drawn).astype(np.float32), thresholds_C)


def verdict_of(inputs: TrialInputs, noise: Mapping[tuple[int, Role], float]) -> Verdict:
    """The verdict on candidates and controls with outputs of this noise, with two seeds each."""
    outputs = {
        Rerun(trial=trial, role=role, seed=seed, recipe=Recipe()): noisy(inputs, of_run, 10 * trial + seed)
        for (trial, role), of_run in noise.items()
        for seed in (1, 2)
    }
    rows = inputs.rows("test", Worker())
    answers = ConfirmationAnswers(
        outputs=outputs, failed={}, teacher=noisy(inputs, 0.1, 0), rows=rows, task=inputs.task
    )
    quality = inputs.task.quality.name
    candidates = [
        TrialRecord(
            number=number,
            params={"student.depth": number},
            state="completed",
            history=({"step": 9, quality: 0.9, "retention": 1.0},),
            costs=COSTS,
        )
        for number in sorted({trial for trial, _ in noise})
    ]
    return reach_verdict(answers, candidates, Choose(best=quality, smallest=None, retention=0.1), {"latency_ms": 2.0})


@pytest.mark.parametrize("kind", KINDS)
def test_the_better_candidate_is_chosen_and_the_test_shows_it(inputs_of: InputsOf, kind: str) -> None:
    inputs = inputs_of(kind)
    verdict = verdict_of(inputs, {(1, "candidate"): 2.5, (2, "candidate"): 0.4, (2, "labels only"): 2.5})
    task = inputs.task
    assert (verdict.metric, verdict.chosen) == (task.quality.name, 2)
    assert verdict.rows == KINDS[kind][1].test_rows  # sentences, not words or windows
    assert isinstance(verdict.against, ExchangeTest)
    assert verdict.against.trial == 1
    assert verdict.against.difference > 0
    assert verdict.against.p < 0.01
    assert any("approximate randomisation test" in sentence for sentence in verdict.sentences)
    assert verdict.gains[0].difference.low > 0
    winner = verdict.winner
    assert winner is not None
    assert winner.metric.low <= winner.metric.estimate <= winner.metric.high
    assert set(task.metric_names(inputs.tokens.labels)) <= set(winner.metrics)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_candidates_are_not_told_apart(inputs_of: InputsOf, kind: str) -> None:
    verdict = verdict_of(inputs_of(kind), {(1, "candidate"): 1.0, (2, "candidate"): 1.0, (2, "labels only"): 1.0})
    assert isinstance(verdict.against, ExchangeTest)
    assert verdict.against.p > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_is_the_metric_of_all_rows(inputs_of: InputsOf, kind: str) -> None:
    """The counts of the rows add up to what the task computes of all outputs; with two seeds it is their mean."""
    inputs = inputs_of(kind)
    verdict = verdict_of(inputs, {(1, "candidate"): 1.0})
    rows, teacher = inputs.rows("test", Worker()), noisy(inputs, 0.1, 0)
    own = [student_quality(inputs.task, noisy(inputs, 1.0, 10 + seed), teacher, rows) for seed in (1, 2)]
    quality = inputs.task.quality.name
    winner = verdict.winner
    assert winner is not None
    assert winner.metrics[quality] == pytest.approx(np.mean([each[quality] for each in own]))
    assert winner.metric.estimate == pytest.approx(winner.metrics[quality], abs=1e-9)
    assert winner.metrics["agreement"] == pytest.approx(np.mean([each["agreement"] for each in own]))
    assert winner.retention.estimate == pytest.approx(np.mean([each["retention"] for each in own]), abs=1e-6)
