"""Metrics of one number a row: compare them with scipy and scikit-learn, also on numbers that are far from zero."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics import mean_absolute_error, mean_squared_error

from kdray.tasks.correlation import NUMBER_METRICS, correlation, number_counts, pearson, spearman

EXPECTED = {
    "pearson": lambda gold, outputs: stats.pearsonr(gold, outputs).statistic,
    "mse": mean_squared_error,
    "mae": mean_absolute_error,
}


def numbers(offset: float = 0.0, spread: float = 1.0, rows: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and gold with a correlation of about 0.7."""
    random = np.random.default_rng(0)
    gold_N = random.normal(size=rows)
    return offset + spread * (gold_N + random.normal(size=rows)), offset + spread * gold_N


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize(("offset", "spread"), [(0.0, 1.0), (3.0, 1.0), (1e6, 1e-2), (-1e9, 1.0), (0.0, 1e-9)])
def test_the_metrics_equal_those_of_scipy_and_scikit_learn(name: str, offset: float, spread: float) -> None:
    outputs_N, gold_N = numbers(offset, spread)
    value = NUMBER_METRICS[name](number_counts(outputs_N, gold_N).sum(axis=0))
    assert value == pytest.approx(EXPECTED[name](gold_N, outputs_N), rel=1e-9)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_metrics_of_draws_of_rows_equal_those_of_scipy_and_scikit_learn(name: str) -> None:
    outputs_N, gold_N = numbers(1e6, 1e-2)
    draws = np.random.default_rng(1).integers(200, size=(20, 200))
    weights = np.stack([np.bincount(draw, minlength=200) for draw in draws])
    values = NUMBER_METRICS[name]((weights @ number_counts(outputs_N, gold_N)).reshape(4, 5, -1))
    expected = [EXPECTED[name](gold_N[draw], outputs_N[draw]) for draw in draws]
    np.testing.assert_allclose(values, np.reshape(expected, (4, 5)), rtol=1e-8)


@pytest.mark.parametrize("offset", [0.0, 4.0, 1e6])
def test_float32_numbers_are_computed_with_in_float64(offset: float) -> None:
    outputs_N, gold_N = (values_N.astype(np.float32) for values_N in numbers(offset))
    sums = number_counts(outputs_N, gold_N).sum(axis=0)
    for name, expected in EXPECTED.items():
        assert NUMBER_METRICS[name](sums) == pytest.approx(
            expected(gold_N.astype(np.float64), outputs_N.astype(np.float64)), rel=1e-9
        )


def test_pearson_does_not_depend_on_the_centre_and_parts_with_one_centre_add_up() -> None:
    outputs_N, gold_N = numbers(4.0)
    whole = pearson(number_counts(outputs_N, gold_N).sum(axis=0))
    for centre in (0.0, 4.2, -30.0):
        parts = [number_counts(outputs_N[rows], gold_N[rows], centre) for rows in (slice(0, 50), slice(50, None))]
        assert pearson(sum(part.sum(axis=0) for part in parts)) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("constant", [0.0, 0.1, 4.3, 1e6 + 0.1])
@pytest.mark.parametrize("rows", [1, 7, 30_000])
def test_a_side_without_spread_gives_zero(constant: float, rows: int) -> None:
    varied_N = np.random.default_rng(0).normal(size=rows)
    constant_N = np.full(rows, constant)
    for outputs_N, gold_N in ((varied_N, constant_N), (constant_N, varied_N), (constant_N, constant_N)):
        counts_NxK = number_counts(outputs_N, gold_N)
        assert pearson(counts_NxK.sum(axis=0)) == 0.0
        assert pearson(np.full((1, rows), 3) @ counts_NxK) == 0.0
        assert spearman(outputs_N, gold_N) == 0.0
        assert correlation(outputs_N, gold_N) == 0.0


def test_a_model_that_answers_nearly_the_same_number_keeps_its_correlation() -> None:
    outputs_N, gold_N = numbers()
    value = pearson(number_counts(0.5 + 1e-5 * outputs_N, gold_N).sum(axis=0))
    assert value == pytest.approx(pearson(number_counts(outputs_N, gold_N).sum(axis=0)), rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12).flatmap(lambda rows: arrays(np.float64, (2, rows), elements=st.integers(-3, 3))))
def test_spearman_with_ties_equals_that_of_scipy(both) -> None:
    outputs_N, gold_N = both
    is_flat = len(set(outputs_N)) == 1 or len(set(gold_N)) == 1
    expected = 0.0 if is_flat else stats.spearmanr(outputs_N, gold_N).statistic
    assert spearman(outputs_N, gold_N) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_makes_every_metric_nan(wrong: float) -> None:
    outputs_N, gold_N = numbers()
    outputs_N[3] = wrong
    sums = number_counts(outputs_N, gold_N).sum(axis=0)
    assert all(np.isnan(metric(sums)) for metric in NUMBER_METRICS.values())
    assert np.isnan(spearman(outputs_N, gold_N))
    assert np.isnan(correlation(outputs_N, gold_N))


def test_rows_without_gold_count_nothing() -> None:
    outputs_N, gold_N = numbers()
    expected = number_counts(outputs_N[10:], gold_N[10:]).sum(axis=0)
    gold_N[:10], outputs_N[0] = np.nan, np.inf
    np.testing.assert_allclose(number_counts(outputs_N, gold_N).sum(axis=0), expected, rtol=1e-12, atol=1e-9)


def test_the_agreement_of_two_models_is_their_correlation() -> None:
    first_N, second_N = numbers(1e6, 1e-2)
    assert correlation(first_N, second_N + 1e9) == pytest.approx(stats.pearsonr(first_N, second_N).statistic, abs=1e-4)
    assert correlation(first_N, 5 - 2 * first_N) == pytest.approx(-1.0)


@pytest.mark.parametrize("function", [number_counts, spearman, correlation])
def test_numbers_of_other_shapes_are_refused(function) -> None:
    with pytest.raises(ValueError, match="one number for each row"):
        function(np.zeros((3, 1)), np.zeros(3))
