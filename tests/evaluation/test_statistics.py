"""Intervals against scipy's, an exact enumeration and a simulation; McNemar's test against the binomial formula."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from kdray.errors import SpecError
from kdray.evaluation import statistics
from kdray.evaluation.statistics import (
    ComputedMetric,
    CountMetric,
    Interval,
    bootstrap_difference,
    bootstrap_interval,
    bootstrap_ratio,
    classification_metric,
    mcnemar,
)

SKLEARN = {
    "accuracy": lambda answers, labels: accuracy_score(labels, answers),
    "macro_f1": lambda answers, labels: f1_score(labels, answers, average="macro", zero_division=0.0),
    "mcc": lambda answers, labels: matthews_corrcoef(labels, answers),
}
METHODS = pytest.mark.parametrize("method", ["bca", "percentile"])


def answered(rows: int, share: float, seed: int, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Answers of which this share is right, and the labels, which are the same for every `seed`."""
    labels_N = np.random.default_rng(0).integers(classes, size=rows)
    random = np.random.default_rng(1 + seed)
    return np.where(random.random(rows) < share, labels_N, (labels_N + 1) % classes), labels_N


def measured(rows: int, share: float, seed: int) -> CountMetric:
    return classification_metric("accuracy", *answered(rows, share, seed))


# Against others -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", SKLEARN)
@pytest.mark.parametrize("classes", [2, 5])
def test_the_metrics_are_scikit_learn_s_on_any_draw(metric: str, classes: int) -> None:
    answers_N, labels_N = answered(40, 0.6, 0, classes)
    weights_RxN = statistics._weights(50, 40, np.random.default_rng(0))
    quick = classification_metric(metric, answers_N, labels_N).values(weights_RxN)
    slow = ComputedMetric(SKLEARN[metric], answers_N[None], labels_N).values(weights_RxN)
    np.testing.assert_allclose(quick, slow, atol=1e-12)
    assert quick.shape == (50, 1)


@METHODS
@pytest.mark.parametrize("metric", SKLEARN)
def test_an_interval_is_scipy_s(metric: str, method: str) -> None:
    answers_N, labels_N = answered(120, 0.85, 0)
    own = bootstrap_interval(classification_metric(metric, answers_N, labels_N), method=method, resamples=20_000)  # type: ignore[arg-type]
    theirs = stats.bootstrap(
        (answers_N, labels_N),
        SKLEARN[metric],
        paired=True,
        vectorized=False,
        n_resamples=1_000,
        method="BCa" if method == "bca" else "percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert own.estimate == pytest.approx(SKLEARN[metric](answers_N, labels_N))
    assert (own.low, own.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)


@METHODS
def test_a_paired_difference_and_a_ratio_are_scipy_s(method: str) -> None:
    (first_N, labels_N), (second_N, _) = answered(200, 0.9, 0), answered(200, 0.8, 1)
    right = (first_N == labels_N).astype(float), (second_N == labels_N).astype(float)
    pair = classification_metric("accuracy", first_N, labels_N), classification_metric("accuracy", second_N, labels_N)
    for own, theirs in (
        (bootstrap_difference, lambda a, b, axis=-1: a.mean(axis=axis) - b.mean(axis=axis)),
        (bootstrap_ratio, lambda a, b, axis=-1: a.mean(axis=axis) / b.mean(axis=axis)),
    ):
        found = own(*pair, method=method, resamples=20_000)  # type: ignore[operator]
        expected = stats.bootstrap(
            right,
            theirs,
            paired=True,
            n_resamples=20_000,
            method="BCa" if method == "bca" else "percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.006)


def test_a_percentile_interval_against_every_draw_there_is() -> None:
    """Of five rows there are 5 ** 5 draws: their quantiles are the exact interval."""
    right_N = np.array([1, 1, 1, 1, 0])
    exact = [right_N[list(draw)].mean() for draw in itertools.product(range(5), repeat=5)]
    found = bootstrap_interval(
        classification_metric("accuracy", right_N, np.ones(5, int)), method="percentile", resamples=50_000
    )
    assert (found.low, found.high) == pytest.approx(np.quantile(exact, [0.025, 0.975]), abs=1e-9)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 0), (3, 9), (10, 10), (174, 159)])
def test_mcnemar_against_the_formula(b: int, c: int) -> None:
    first_N = np.array([True] * b + [False] * c + [True] * 7 + [False] * 3)
    second_N = np.array([False] * b + [True] * c + [True] * 7 + [False] * 3)
    found = mcnemar(first_N, second_N)
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    assert (found.only_first, found.only_second) == (b, c)
    assert found.p == pytest.approx(min(1.0, 2 * tail))


# By property ----------------------------------------------------------------------------------------------------------

CASES = st.integers(2, 25).flatmap(
    lambda rows: st.tuples(*(st.lists(st.integers(0, 2), min_size=rows, max_size=rows) for _ in range(3)))
)
FEW = settings(max_examples=40, deadline=None)


@FEW
@given(CASES, st.sampled_from(list(SKLEARN)), st.sampled_from(["bca", "percentile"]))
def test_an_interval_holds_its_estimate_and_differences_are_symmetric(cases, metric, method) -> None:
    labels_N, *answers = (np.array(case) for case in cases)
    first, second = (classification_metric(metric, answers_N, labels_N) for answers_N in answers)
    own = bootstrap_interval(first, method=method, resamples=200)
    assert own.low <= own.estimate <= own.high
    assert own.estimate in own
    forth, back = (
        bootstrap_difference(*pair, method=method, resamples=200) for pair in ((first, second), (second, first))
    )
    assert (forth.estimate, forth.low, forth.high) == pytest.approx((-back.estimate, -back.high, -back.low), abs=1e-9)


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
    there, back = mcnemar(first_N, second_N), mcnemar(second_N, first_N)
    assert (there.only_first, there.only_second, there.p) == (back.only_second, back.only_first, back.p)
    assert 0 < there.p <= 1


# By simulation --------------------------------------------------------------------------------------------------------


@METHODS
def test_nineteen_of_twenty_intervals_hold_the_truth(method: str) -> None:
    """300 test splits of 150 rows, drawn from a world in which 85 % are right."""
    random = np.random.default_rng(0)
    labels_N = np.ones(150, int)
    found = [
        bootstrap_interval(
            classification_metric("accuracy", (random.random(150) < 0.85).astype(int), labels_N),
            method=method,
            resamples=400,
        )  # type: ignore[arg-type]
        for _ in range(300)
    ]
    covered = np.mean([0.85 in one for one in found])
    assert 0.90 <= covered <= 0.985


def test_intervals_over_seeds_hold_the_truth_where_one_seed_s_do_not() -> None:
    """Each training is better or worse by luck (deviation 0.05); the truth is what trainings come to on average."""
    random = np.random.default_rng(0)
    labels_N = np.ones(400, int)
    alone, together = [], []
    for _ in range(200):
        lucks_S = np.clip(0.8 + 0.05 * random.standard_normal(5), 0, 1)
        answers_SxN = (random.random((5, 400)) < lucks_S[:, None]).astype(int)
        alone.append(
            0.8 in bootstrap_interval(classification_metric("accuracy", answers_SxN[:1], labels_N), resamples=200)
        )
        together.append(
            0.8 in bootstrap_interval(classification_metric("accuracy", answers_SxN, labels_N), resamples=200)
        )
    assert np.mean(alone) < 0.75
    assert np.mean(together) > 0.85


def test_the_spread_between_seeds_is_not_made_too_small() -> None:
    """Rows that all answer alike leave the seeds as the only source of spread: it must be that of a mean of three."""
    answers_SxN = np.array([[1] * 8 + [0] * 2, [1] * 10, [1] * 6 + [0] * 4])
    metric = ComputedMetric(
        lambda answers, labels: float(answers[0]), np.array([[0.8] * 10, [1.0] * 10, [0.6] * 10]), np.ones(10)
    )
    random = np.random.default_rng(0)
    draws = statistics._drawn([metric], 20_000, random)[0]
    means = answers_SxN.mean(axis=1)
    assert draws.var() == pytest.approx(means.var(ddof=1) / 3, rel=0.05)


# What a user would notice ---------------------------------------------------------------------------------------------


def test_two_thousand_draws_of_a_test_split_take_a_moment() -> None:
    pair = measured(1821, 0.90, 0), measured(1821, 0.88, 1)
    start = time.perf_counter()
    found = bootstrap_difference(*pair)
    assert time.perf_counter() - start < 2  # 0.1 s where nothing else runs
    assert 0.03 < found.width < 0.05


def test_pairing_narrows_a_difference() -> None:
    answers_N, labels_N = answered(600, 0.85, 0)
    better_N = answers_N.copy()
    better_N[np.flatnonzero(answers_N != labels_N)[:20]] = labels_N[np.flatnonzero(answers_N != labels_N)[:20]]
    paired = bootstrap_difference(
        classification_metric("accuracy", better_N, labels_N), classification_metric("accuracy", answers_N, labels_N)
    )
    alone = bootstrap_interval(classification_metric("accuracy", answers_N, labels_N))
    assert 0 < paired.low < paired.estimate == pytest.approx(20 / 600)
    assert paired.width < alone.width / 2


def test_the_seed_decides_and_parts_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    one = measured(100, 0.8, 0)
    whole = bootstrap_interval(one, seed=3, resamples=50)
    assert whole == bootstrap_interval(one, seed=3, resamples=50)
    assert len({bootstrap_interval(one, seed=seed, resamples=50) for seed in range(5)}) > 1
    monkeypatch.setattr(statistics, "CELLS", 1_000)
    assert bootstrap_interval(one, seed=3, resamples=50) == whole


def test_a_metric_of_one_s_own() -> None:
    logits_NxC = np.random.default_rng(0).normal(size=(60, 2))
    labels_N = (logits_NxC[:, 0] < logits_NxC[:, 1]).astype(int)
    own = ComputedMetric(lambda logits, labels: float((logits.argmax(1) == labels).mean()), logits_NxC[None], labels_N)
    assert bootstrap_interval(own, resamples=100) == Interval(1.0, 1.0, 1.0)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(SpecError, match="no quick metric 'acuracy'; did you mean 'accuracy'"):
        classification_metric("acuracy", np.ones(3, int), np.ones(3, int))
    with pytest.raises(ValueError, match="answers for 3 rows, labels for 4"):
        classification_metric("accuracy", np.ones(3, int), np.ones(4, int))
    with pytest.raises(ValueError, match=r"\[100, 90\] rows: all must have answered the same ones"):
        bootstrap_difference(measured(100, 0.8, 0), measured(90, 0.8, 0))
    with pytest.raises(ValueError, match="3 and 4 rows"):
        mcnemar(np.ones(3, bool), np.ones(4, bool))
