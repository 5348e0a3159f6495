"""Compare the approximate randomisation test with scipy, with all possible exchanges, and with its own null."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from kdray.evaluation import randomisation
from kdray.evaluation.randomisation import Randomisation, randomisation_test
from kdray.evaluation.statistics import ComputedMetric, CountMetric
from kdray.tasks.correlation import number_counts, pearson, spearman
from kdray.tasks.label_sets import label_set_counts, macro_f1

System = CountMetric | ComputedMetric


def number_systems(rows: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The outputs of two systems, of which the second has this much noise in place of 1, and the gold numbers."""
    random = np.random.default_rng(seed)
    gold_N = random.normal(size=rows)
    return gold_N + random.normal(size=rows), gold_N + noise * random.normal(size=rows), gold_N


def pearson_metric(outputs_N: np.ndarray, gold_N: np.ndarray) -> CountMetric:
    return CountMetric((number_counts(outputs_N, gold_N),), pearson)


def spearman_metric(outputs_N: np.ndarray, gold_N: np.ndarray) -> ComputedMetric:
    return ComputedMetric(spearman, outputs_N[None], gold_N)


def label_systems(rows: int, seed: int) -> tuple[CountMetric, CountMetric]:
    """Two systems that give several labels, of which the first is better; their metric is macro F1."""
    random = np.random.default_rng(seed)
    gold_NxC = (random.random((rows, 3)) < 0.4).astype(np.int8)
    better_NxC, worse_NxC = (random.normal(scale * (gold_NxC - 0.5), 1.0) for scale in (2.5, 1.5))
    return (
        CountMetric((label_set_counts(better_NxC, gold_NxC),), macro_f1),
        CountMetric((label_set_counts(worse_NxC, gold_NxC),), macro_f1),
    )


def exact_p(difference: Callable[[np.ndarray], float], rows: int) -> float:
    """The share of all possible exchanges whose difference is at least as large as that without an exchange."""
    found = abs(difference(np.zeros(rows, bool)))
    exchanges = itertools.product([False, True], repeat=rows)
    return float(np.mean([abs(difference(np.array(exchange))) >= found - 1e-12 for exchange in exchanges]))


def mean_error(p: float, shuffles: int) -> float:
    """Four standard errors of a p-value of so many shuffles."""
    return 4 * float(np.sqrt(p * (1 - p) / shuffles)) + 1 / shuffles


@pytest.mark.parametrize("metric", [pearson_metric, spearman_metric])
@pytest.mark.parametrize("seed", [0, 3])
def test_p_is_near_that_of_all_possible_exchanges(metric: Callable[..., System], seed: int) -> None:
    first_N, second_N, gold_N = number_systems(9, 0.3, seed)
    value = pearson if metric is pearson_metric else None

    def difference(exchange: np.ndarray) -> float:
        one_N, other_N = np.where(exchange, second_N, first_N), np.where(exchange, first_N, second_N)
        if value is None:
            return spearman(one_N, gold_N) - spearman(other_N, gold_N)
        return float(np.corrcoef(one_N, gold_N)[0, 1] - np.corrcoef(other_N, gold_N)[0, 1])

    result = randomisation_test(metric(first_N, gold_N), metric(second_N, gold_N), shuffles=1_500)
    expected = exact_p(difference, 9)
    assert result.estimate == pytest.approx(difference(np.zeros(9, bool)))
    assert result.p == pytest.approx(expected, abs=mean_error(expected, 1_500))


def test_p_is_near_that_of_scipy() -> None:
    """The difference of two means of right answers, which scipy exchanges between the samples of each row."""
    random = np.random.default_rng(0)
    first_N, second_N = (random.random(150) < share for share in (0.8, 0.7))
    gold_N = np.ones(150)
    systems = (ComputedMetric(lambda one, _: float(one.mean()), each[None], gold_N) for each in (first_N, second_N))
    result = randomisation_test(*systems, shuffles=3_000)
    expected = stats.permutation_test(
        (first_N.astype(float), second_N.astype(float)),
        lambda one, other, axis: one.mean(axis=axis) - other.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    )
    assert result.estimate == pytest.approx(expected.statistic)
    assert result.p == pytest.approx(expected.pvalue, abs=mean_error(expected.pvalue, 3_000))


@pytest.mark.parametrize("shuffles", [99, 100])
def test_p_is_uniform_if_the_systems_are_equally_good(shuffles: int) -> None:
    pairs = (number_systems(40, 1.0, seed) for seed in range(300))
    results = [
        randomisation_test(pearson_metric(first_N, gold_N), pearson_metric(second_N, gold_N), shuffles=shuffles)
        for first_N, second_N, gold_N in pairs
    ]
    p_values = np.array([result.p for result in results])
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert p_values.min() >= 1 / (shuffles + 1)


def test_a_clear_difference_has_a_small_p_and_an_order() -> None:
    better, worse = label_systems(400, 0)
    forward, backward = randomisation_test(better, worse), randomisation_test(worse, better)
    assert forward.estimate == -backward.estimate > 0.05
    assert forward.p == pytest.approx(1e-4, abs=2e-4)
    assert backward.p == pytest.approx(forward.p, abs=2e-4)
    assert forward.shuffles == 9_999


@pytest.mark.parametrize("metric", [pearson_metric, spearman_metric])
def test_equal_systems_do_not_differ(metric: Callable[..., System]) -> None:
    outputs_N, _, gold_N = number_systems(30, 1.0, 0)
    same = metric(outputs_N, gold_N)
    assert randomisation_test(same, metric(outputs_N.copy(), gold_N), shuffles=50) == Randomisation(0.0, 1.0, 50)


def test_counts_and_outputs_give_the_same_result() -> None:
    """Both ways draw the same coins, so even the p-values are equal."""
    first_N, second_N, gold_N = number_systems(60, 0.7, 1)

    def by_outputs(outputs_N: np.ndarray) -> ComputedMetric:
        return ComputedMetric(lambda one, gold: float(np.corrcoef(one, gold)[0, 1]), outputs_N[None], gold_N)

    counted = randomisation_test(pearson_metric(first_N, gold_N), pearson_metric(second_N, gold_N), shuffles=500)
    computed = randomisation_test(by_outputs(first_N), by_outputs(second_N), shuffles=500)
    assert counted.estimate == pytest.approx(computed.estimate)
    assert counted.p == computed.p


def test_a_seed_gives_the_same_p_and_another_seed_a_similar_one() -> None:
    first_N, second_N, gold_N = number_systems(60, 0.8, 2)
    systems = pearson_metric(first_N, gold_N), pearson_metric(second_N, gold_N)
    p_values = [randomisation_test(*systems, shuffles=2_000, seed=seed).p for seed in (5, 5, 6)]
    assert p_values[0] == p_values[1] != p_values[2]
    assert p_values[2] == pytest.approx(p_values[0], abs=2 * mean_error(p_values[0], 2_000))


def test_shuffles_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    better, worse = label_systems(50, 1)
    whole = randomisation_test(better, worse, shuffles=1_000)
    sizes: list[int] = []

    def record(sums: np.ndarray) -> np.ndarray:
        sizes.append(sums.size)
        return macro_f1(sums)

    monkeypatch.setattr(randomisation, "CELLS_IN_MEMORY", 2_000)
    parts = randomisation_test(CountMetric(better.counts_SxNxK, record), worse, shuffles=1_000)
    assert max(sizes) <= 2_000
    assert parts.p == pytest.approx(whole.p, abs=2 * mean_error(whole.p, 1_000))


def test_only_the_first_seed_is_compared() -> None:
    first_N, second_N, gold_N = number_systems(30, 0.8, 0)
    first, second = pearson_metric(first_N, gold_N), pearson_metric(second_N, gold_N)
    several = CountMetric((*first.counts_SxNxK, *second.counts_SxNxK), pearson)
    assert randomisation_test(several, second, shuffles=200) == randomisation_test(first, second, shuffles=200)


def test_outputs_that_are_not_finite_prove_nothing() -> None:
    first_N, second_N, gold_N = number_systems(30, 0.1, 0)
    first_N[3] = np.nan
    for metric in (pearson_metric, spearman_metric):
        result = randomisation_test(metric(first_N, gold_N), metric(second_N, gold_N), shuffles=100)
        assert np.isnan(result.estimate)
        assert result.p == 1.0


def test_systems_that_cannot_be_exchanged_are_refused() -> None:
    first_N, second_N, gold_N = number_systems(30, 1.0, 0)
    labels, _ = label_systems(30, 0)
    first = pearson_metric(first_N, gold_N)
    with pytest.raises(ValueError, match="20 rows"):
        randomisation_test(first, pearson_metric(second_N[:20], gold_N[:20]))
    with pytest.raises(ValueError, match="8 and 11 counts"):
        randomisation_test(first, labels)
    with pytest.raises(ValueError, match="CountMetric and ComputedMetric"):
        randomisation_test(first, spearman_metric(second_N, gold_N))
    with pytest.raises(ValueError, match="labels differ"):
        randomisation_test(spearman_metric(first_N, gold_N), spearman_metric(second_N, gold_N + 1))
