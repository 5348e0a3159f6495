"""Successive halving: it decides by the histories of the trials alone."""

import pytest

from kdray.errors import SpecError
from kdray.search.stopping import Halving, Rungs


def can_continue(value: float, peers: list[float], evaluations: int = 1, metric: str = "accuracy") -> bool:
    """Whether a trial with this value continues after so many evaluations, when these other trials have been there."""
    rungs = Rungs(Halving(), metric)
    for other in [*peers, value]:
        rungs.add("group", evaluations, {metric: other})
    return rungs.can_continue("group", evaluations, {metric: value})


def test_rungs_grow_by_the_reduction() -> None:
    assert [n for n in range(1, 30) if Halving(first=2, reduction=3).is_rung(n)] == [2, 6, 18]


def test_only_the_best_third_continues() -> None:
    peers = [0.5 + number / 10 for number in range(5)]
    assert can_continue(0.95, peers)
    assert can_continue(0.85, peers)
    assert not can_continue(0.75, peers)


def test_no_trial_is_stopped_between_rungs_or_among_too_few() -> None:
    assert can_continue(0.1, [0.9])
    assert not can_continue(0.1, [0.9, 0.9])
    assert can_continue(0.1, [0.9] * 6, evaluations=2)


def test_equal_trials_all_continue() -> None:
    assert can_continue(0.5, [0.5] * 9)


@pytest.mark.parametrize("metric", ["loss", "mse", "mae", "perplexity"])
def test_less_of_a_minimized_metric_is_better(metric: str) -> None:
    assert can_continue(0.05, [0.1, 0.2, 0.3], metric=metric)
    assert not can_continue(0.9, [0.1, 0.2, 0.3], metric=metric)


def test_a_trial_is_compared_at_the_same_number_of_evaluations_in_its_group() -> None:
    rungs = Rungs(Halving(), "accuracy")
    for number in range(4):
        rungs.add("deep", 1, {"accuracy": 0.2})
        rungs.add("deep", 3, {"accuracy": 0.9})
        rungs.add("shallow", 1, {"accuracy": 0.9 + number / 100})
    rungs.add("deep", 1, {"accuracy": 0.3})
    assert rungs.can_continue("deep", 1, {"accuracy": 0.3})
    assert not rungs.can_continue("shallow", 1, {"accuracy": 0.91})


def test_a_trial_that_failed_is_compared_with_no_other() -> None:
    rungs = Rungs(Halving(), "accuracy")
    for accuracy in (0.5, 0.9, 0.9):
        rungs.add("group", 1, {"accuracy": accuracy})
    assert not rungs.can_continue("group", 1, {"accuracy": 0.5})
    rungs.remove("group", [{"accuracy": 0.9}, {"accuracy": 0.9}])
    assert rungs.can_continue("group", 1, {"accuracy": 0.5})


def test_a_reduction_of_one_is_refused() -> None:
    with pytest.raises(SpecError, match="reduction"):
        Halving(reduction=1)
