"""Compare intervals with scipy, an exact enumeration and a simulation, and McNemar's test with the binomial formula."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from kdray.evaluation import statistics
from kdray.evaluation.statistics import (
    ComputedMetric,
    CountMetric,
    Interval,
    bootstrap_difference,
    bootstrap_interval,
    bootstrap_ratio,
    mcnemar,
    metric_of_counts,
)
from kdray.tasks.confusion import confusion_counts

SKLEARN = {
    "accuracy": lambda answers, labels: accuracy_score(labels, answers),
    "macro_f1": lambda answers, labels: f1_score(labels, answers, average="macro", zero_division=0.0),
    "mcc": lambda answers, labels: matthews_corrcoef(labels, answers),
}
METHODS = pytest.mark.parametrize("method", ["bca", "percentile"])


def answers_and_labels(rows: int, share: float, seed: int, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Answers of which this share is right, and the labels, which do not depend on `seed`."""
    labels_N = np.random.default_rng(0).integers(classes, size=rows)
    random = np.random.default_rng(1 + seed)
    return np.where(random.random(rows) < share, labels_N, (labels_N + 1) % classes), labels_N


def classification_metric(metric: str, answers_SxN: np.ndarray, labels_N: np.ndarray) -> CountMetric:
    """The metric of answered classes, of one seed (N) or of several (S x N)."""
    answers_SxN = np.atleast_2d(answers_SxN)
    classes = int(max(answers_SxN.max(), labels_N.max())) + 1
    return metric_of_counts(
        metric, [confusion_counts(answers_N, labels_N, classes, [metric]) for answers_N in answers_SxN]
    )


def accuracy_metric(rows: int, share: float, seed: int) -> CountMetric:
    return classification_metric("accuracy", *answers_and_labels(rows, share, seed))


# Against other implementations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", SKLEARN)
@pytest.mark.parametrize("classes", [2, 5])
def test_the_metrics_equal_those_of_scikit_learn_on_any_draw(metric: str, classes: int) -> None:
    answers_N, labels_N = answers_and_labels(40, 0.6, 0, classes)
    weights_RxN = statistics._draw_weights(50, 40, np.random.default_rng(0))
    counted = classification_metric(metric, answers_N, labels_N).values(weights_RxN)
    computed = ComputedMetric(SKLEARN[metric], answers_N[None], labels_N).values(weights_RxN)
    np.testing.assert_allclose(counted, computed, atol=1e-12)
    assert counted.shape == (50, 1)


@METHODS
@pytest.mark.parametrize("metric", SKLEARN)
def test_an_interval_equals_that_of_scipy(metric: str, method: str) -> None:
    answers_N, labels_N = answers_and_labels(120, 0.85, 0)
    own = bootstrap_interval(classification_metric(metric, answers_N, labels_N), method=method, resamples=20_000)  # type: ignore[arg-type]
    expected = stats.bootstrap(
        (answers_N, labels_N),
        SKLEARN[metric],
        paired=True,
        vectorized=False,
        n_resamples=1_000,
        method="BCa" if method == "bca" else "percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert own.estimate == pytest.approx(SKLEARN[metric](answers_N, labels_N))
    assert (own.low, own.high) == pytest.approx((expected.low, expected.high), abs=0.03)


@METHODS
def test_a_paired_difference_and_a_ratio_equal_those_of_scipy(method: str) -> None:
    (first_N, labels_N), (second_N, _) = answers_and_labels(200, 0.9, 0), answers_and_labels(200, 0.8, 1)
    right = (first_N == labels_N).astype(float), (second_N == labels_N).astype(float)
    pair = classification_metric("accuracy", first_N, labels_N), classification_metric("accuracy", second_N, labels_N)
    for bootstrap, statistic in (
        (bootstrap_difference, lambda a, b, axis=-1: a.mean(axis=axis) - b.mean(axis=axis)),
        (bootstrap_ratio, lambda a, b, axis=-1: a.mean(axis=axis) / b.mean(axis=axis)),
    ):
        interval = bootstrap(*pair, method=method, resamples=20_000)  # type: ignore[operator]
        expected = stats.bootstrap(
            right,
            statistic,
            paired=True,
            n_resamples=20_000,
            method="BCa" if method == "bca" else "percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.006)


def test_a_percentile_interval_equals_that_of_all_possible_draws() -> None:
    """Five rows have 5 ** 5 possible draws, whose quantiles are the exact interval."""
    right_N = np.array([1, 1, 1, 1, 0])
    exact = [right_N[list(draw)].mean() for draw in itertools.product(range(5), repeat=5)]
    interval = bootstrap_interval(
        classification_metric("accuracy", right_N, np.ones(5, int)), method="percentile", resamples=50_000
    )
    assert (interval.low, interval.high) == pytest.approx(np.quantile(exact, [0.025, 0.975]), abs=1e-9)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 0), (3, 9), (10, 10), (174, 159)])
def test_mcnemar_equals_the_formula(b: int, c: int) -> None:
    first_N = np.array([True] * b + [False] * c + [True] * 7 + [False] * 3)
    second_N = np.array([False] * b + [True] * c + [True] * 7 + [False] * 3)
    result = mcnemar(first_N, second_N)
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    assert (result.only_first, result.only_second) == (b, c)
    assert result.p == pytest.approx(min(1.0, 2 * tail))


# Properties -----------------------------------------------------------------------------------------------------------

CASES = st.integers(2, 25).flatmap(
    lambda rows: st.tuples(*(st.lists(st.integers(0, 2), min_size=rows, max_size=rows) for _ in range(3)))
)
FEW = settings(max_examples=40, deadline=None)


@FEW
@given(CASES, st.sampled_from(list(SKLEARN)), st.sampled_from(["bca", "percentile"]))
def test_an_interval_contains_its_estimate_and_differences_are_symmetric(cases, metric, method) -> None:
    labels_N, *answers = (np.array(case) for case in cases)
    first, second = (classification_metric(metric, answers_N, labels_N) for answers_N in answers)
    own = bootstrap_interval(first, method=method, resamples=200)
    assert own.low <= own.estimate <= own.high
    assert own.estimate in own
    forward, backward = (
        bootstrap_difference(*pair, method=method, resamples=200) for pair in ((first, second), (second, first))
    )
    mirrored = (-backward.estimate, -backward.high, -backward.low)
    assert (forward.estimate, forward.low, forward.high) == pytest.approx(mirrored, abs=1e-9)


@FEW
@given(CASES, st.sampled_from(list(SKLEARN)))
def test_identical_students_do_not_differ(cases, metric) -> None:
    labels_N, answers_N, _ = (np.array(case) for case in cases)
    same = classification_metric(metric, answers_N, labels_N)
    assert bootstrap_difference(same, same, resamples=50) == Interval(0.0, 0.0, 0.0)
    if same.values(np.ones((1, len(labels_N)), int))[0, 0]:
        assert bootstrap_ratio(same, same, resamples=50, method="percentile").estimate == 1.0
    assert mcnemar(answers_N == labels_N, answers_N == labels_N).p == 1.0


@FEW
@given(CASES)
def test_mcnemar_does_not_depend_on_the_order(cases) -> None:
    labels_N, *answers = (np.array(case) for case in cases)
    first_N, second_N = (answers_N == labels_N for answers_N in answers)
    forward, backward = mcnemar(first_N, second_N), mcnemar(second_N, first_N)
    swapped = (backward.only_second, backward.only_first, backward.p)
    assert (forward.only_first, forward.only_second, forward.p) == swapped
    assert 0 < forward.p <= 1


# Simulations ----------------------------------------------------------------------------------------------------------


@METHODS
def test_19_of_20_intervals_contain_the_true_value(method: str) -> None:
    """300 test splits of 150 rows, each answer of which is right with probability 0.85."""
    random = np.random.default_rng(0)
    labels_N = np.ones(150, int)
    intervals = [
        bootstrap_interval(
            classification_metric("accuracy", (random.random(150) < 0.85).astype(int), labels_N),
            method=method,
            resamples=400,
        )  # type: ignore[arg-type]
        for _ in range(300)
    ]
    share = np.mean([0.85 in interval for interval in intervals])
    assert 0.90 <= share <= 0.985


def test_intervals_over_seeds_contain_the_true_value_where_those_of_one_seed_do_not() -> None:
    """The accuracy of a training varies with its seed, with a standard deviation of 0.05 around the true value 0.8."""
    random = np.random.default_rng(0)
    labels_N = np.ones(400, int)
    alone, together = [], []
    for _ in range(200):
        accuracies_S = np.clip(0.8 + 0.05 * random.standard_normal(5), 0, 1)
        answers_SxN = (random.random((5, 400)) < accuracies_S[:, None]).astype(int)
        alone.append(
            0.8 in bootstrap_interval(classification_metric("accuracy", answers_SxN[:1], labels_N), resamples=200)
        )
        together.append(
            0.8 in bootstrap_interval(classification_metric("accuracy", answers_SxN, labels_N), resamples=200)
        )
    assert np.mean(alone) < 0.75
    assert np.mean(together) > 0.85


def test_the_variance_between_seeds_is_not_too_small() -> None:
    """If all rows of a seed have one value, only seeds vary: the variance must be that of a mean of three seeds."""
    values_S = np.array([0.8, 1.0, 0.6])
    metric = ComputedMetric(
        metric=lambda outputs, labels: float(outputs[0]),
        outputs_SxN=np.repeat(values_S[:, None], 10, axis=1),
        labels_N=np.ones(10),
    )
    draws = statistics._draw_means([metric], 20_000, np.random.default_rng(0))[0]
    assert draws.var() == pytest.approx(values_S.var(ddof=1) / 3, rel=0.05)


# What a user would notice ---------------------------------------------------------------------------------------------


def test_the_interval_of_a_difference_on_1821_rows_is_about_four_points_wide() -> None:
    difference = bootstrap_difference(accuracy_metric(1821, 0.90, 0), accuracy_metric(1821, 0.88, 1))
    assert 0.03 < difference.width < 0.05


def test_pairing_makes_the_interval_of_a_difference_narrower() -> None:
    answers_N, labels_N = answers_and_labels(600, 0.85, 0)
    better_N = answers_N.copy()
    better_N[np.flatnonzero(answers_N != labels_N)[:20]] = labels_N[np.flatnonzero(answers_N != labels_N)[:20]]
    paired = bootstrap_difference(
        classification_metric("accuracy", better_N, labels_N), classification_metric("accuracy", answers_N, labels_N)
    )
    unpaired = bootstrap_interval(classification_metric("accuracy", answers_N, labels_N))
    assert 0 < paired.low < paired.estimate == pytest.approx(20 / 600)
    assert paired.width < unpaired.width / 2


def test_draws_depend_on_the_seed_and_not_on_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = accuracy_metric(100, 0.8, 0)
    interval = bootstrap_interval(metric, seed=3, resamples=50)
    assert interval == bootstrap_interval(metric, seed=3, resamples=50)
    assert len({bootstrap_interval(metric, seed=seed, resamples=50) for seed in range(5)}) > 1
    monkeypatch.setattr(statistics, "CELLS_IN_MEMORY", 1_000)
    assert bootstrap_interval(metric, seed=3, resamples=50) == interval


def test_any_function_can_be_a_metric() -> None:
    logits_NxC = np.random.default_rng(0).normal(size=(60, 2))
    labels_N = (logits_NxC[:, 0] < logits_NxC[:, 1]).astype(int)
    metric = ComputedMetric(
        lambda logits, labels: float((logits.argmax(1) == labels).mean()), logits_NxC[None], labels_N
    )
    assert bootstrap_interval(metric, resamples=100) == Interval(1.0, 1.0, 1.0)


def test_different_numbers_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[100, 90\] rows: all candidates must have answered the same rows"):
        bootstrap_difference(accuracy_metric(100, 0.8, 0), accuracy_metric(90, 0.8, 0))
    with pytest.raises(ValueError, match="3 and 4 rows"):
        mcnemar(np.ones(3, bool), np.ones(4, bool))
