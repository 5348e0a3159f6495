"""Successive halving: it decides by the histories of the trials alone."""

import pytest

from kdray.errors import SpecError
from kdray.evaluation.trial_record import TrialRecord
from kdray.search.stopping import Halving


def trial(number: int, *accuracies: float) -> TrialRecord:
    return TrialRecord(number, {}, history=tuple({"accuracy": accuracy} for accuracy in accuracies))


def test_rungs_grow_by_the_reduction() -> None:
    assert [n for n in range(1, 30) if Halving(first=2, reduction=3).is_rung(n)] == [2, 6, 18]


def test_only_the_best_third_continues() -> None:
    halving, peers = Halving(), [trial(number, 0.5 + number / 10) for number in range(5)]
    assert halving.can_continue(trial(9, 0.95), peers, "accuracy")
    assert halving.can_continue(trial(9, 0.85), peers, "accuracy")
    assert not halving.can_continue(trial(9, 0.75), peers, "accuracy")


def test_no_trial_is_stopped_between_rungs_or_among_too_few() -> None:
    halving, peers = Halving(), [trial(0, 0.9), trial(1, 0.9)]
    assert halving.can_continue(trial(9, 0.1), peers[:1], "accuracy")
    assert not halving.can_continue(trial(9, 0.1), peers, "accuracy")
    assert halving.can_continue(trial(9, 0.1, 0.1), [trial(n, 0.9, 0.9) for n in range(6)], "accuracy")


def test_equal_trials_all_continue() -> None:
    assert Halving().can_continue(trial(9, 0.5), [trial(n, 0.5) for n in range(9)], "accuracy")


@pytest.mark.parametrize("metric", ["loss", "mse", "mae", "perplexity"])
def test_less_of_a_minimized_metric_is_better(metric: str) -> None:
    peers = [TrialRecord(n, {}, history=({metric: 0.1 * (n + 1)},)) for n in range(3)]
    assert Halving().can_continue(TrialRecord(9, {}, history=({metric: 0.05},)), peers, metric)
    assert not Halving().can_continue(TrialRecord(9, {}, history=({metric: 0.9},)), peers, metric)


def test_a_trial_is_compared_at_the_same_number_of_evaluations() -> None:
    peers = [trial(number, 0.2, 0.8, 0.99) for number in range(4)]
    assert Halving().can_continue(trial(9, 0.3), peers, "accuracy")


def test_a_reduction_of_one_is_refused() -> None:
    with pytest.raises(SpecError, match="reduction"):
        Halving(reduction=1)
