"""Metrics of several labels a row: compare them with scikit-learn, on all rows, on draws of rows, and on odd rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

from kdray.tasks.label_sets import (
    LABEL_SET_METRICS,
    average_precision,
    label_f1,
    label_set_counts,
    macro_f1,
    micro_f1,
    same_set_share,
    subset_accuracy,
)

SKLEARN = {
    "micro_f1": lambda gold, answers: f1_score(gold, answers, average="micro", zero_division=0.0),
    "macro_f1": lambda gold, answers: f1_score(gold, answers, average="macro", zero_division=0.0),
    "subset_accuracy": accuracy_score,
}
SHAPES = st.tuples(st.integers(1, 12), st.integers(2, 5))
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(arrays(np.int8, shape, elements=st.integers(0, 1)), arrays(bool, shape)))


def random_rows(rows: int = 60, labels: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Margins and gold; the last label has no positive row."""
    random = np.random.default_rng(seed)
    gold_NxC = (random.random((rows, labels)) < np.linspace(0.5, 0, labels)).astype(np.int8)
    return random.normal(gold_NxC - 0.5, 1.0), gold_NxC


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.sampled_from(list(SKLEARN)))
def test_the_metrics_equal_those_of_scikit_learn(pair, name) -> None:
    gold_NxC, answers_NxC = pair
    sums = label_set_counts(np.where(answers_NxC, 0.1, -0.1), gold_NxC).sum(axis=0)
    assert LABEL_SET_METRICS[name](sums) == pytest.approx(SKLEARN[name](gold_NxC, answers_NxC), abs=1e-12)
    each = f1_score(gold_NxC, answers_NxC, average=None, zero_division=0.0)
    assert [label_f1(sums, label) for label in range(len(each))] == pytest.approx(each, abs=1e-12)


@pytest.mark.parametrize("name", SKLEARN)
def test_the_metrics_of_draws_of_rows_equal_those_of_scikit_learn(name: str) -> None:
    margins_NxC, gold_NxC = random_rows()
    draws = np.random.default_rng(1).integers(60, size=(3, 5, 60))
    weights = np.stack([np.bincount(draw, minlength=60) for draw in draws.reshape(15, 60)])
    sums = (weights @ label_set_counts(margins_NxC, gold_NxC)).reshape(3, 5, -1)
    expected = [[SKLEARN[name](gold_NxC[draw], margins_NxC[draw] > 0) for draw in some] for some in draws]
    np.testing.assert_allclose(LABEL_SET_METRICS[name](sums), expected, atol=1e-12)


def test_counts_of_parts_of_the_rows_add_up() -> None:
    margins_NxC, gold_NxC = random_rows()
    parts = [label_set_counts(margins_NxC[rows], gold_NxC[rows]).sum(axis=0) for rows in np.split(np.arange(60), 3)]
    np.testing.assert_array_equal(sum(parts), label_set_counts(margins_NxC, gold_NxC).sum(axis=0))


def test_a_margin_of_zero_is_no_answer_and_rows_without_labels_count() -> None:
    gold_NxC = np.array([[0, 0], [1, 0], [0, 0]])
    sums = label_set_counts(np.array([[0.0, -1.0], [1.0, -1.0], [-1.0, 2.0]]), gold_NxC).sum(axis=0)
    assert sums.tolist() == [1, 0, 1, 1, 1, 0, 2, 3]
    assert (micro_f1(sums), macro_f1(sums), subset_accuracy(sums)) == pytest.approx((2 / 3, 1 / 2, 2 / 3))


def test_rows_without_gold_count_nothing() -> None:
    margins_NxC, gold_NxC = random_rows()
    expected = label_set_counts(margins_NxC[:50], gold_NxC[:50]).sum(axis=0)
    gold_NxC[50:] = -1
    margins_NxC[55] = np.nan
    counts_NxK = label_set_counts(margins_NxC, gold_NxC)
    np.testing.assert_array_equal(counts_NxK.sum(axis=0), expected)
    assert counts_NxK[50:].nnz == 0


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_makes_every_metric_nan(wrong: float) -> None:
    margins_NxC, gold_NxC = random_rows()
    margins_NxC[7, 3] = wrong
    counts_NxK = label_set_counts(margins_NxC, gold_NxC)
    assert all(np.isnan(metric(counts_NxK.sum(axis=0))) for metric in LABEL_SET_METRICS.values())
    assert np.isnan(label_f1(counts_NxK.sum(axis=0), 0))
    assert np.isnan(average_precision(margins_NxC, gold_NxC))
    assert np.isnan(same_set_share(margins_NxC, gold_NxC))
    # Without that row, the metrics are as before.
    weights_N = (np.arange(60) != 7).astype(int)
    kept = counts_NxK[weights_N.astype(bool)].sum(axis=0)
    assert macro_f1(kept) == pytest.approx(SKLEARN["macro_f1"](gold_NxC[weights_N > 0], margins_NxC[weights_N > 0] > 0))


def test_average_precision_equals_that_of_scikit_learn_over_labels_with_positive_rows() -> None:
    margins_NxC, gold_NxC = random_rows()
    margins_NxC = margins_NxC.round(1)  # with ties
    expected = average_precision_score(gold_NxC[:, :3], margins_NxC[:, :3], average="macro")
    assert average_precision(margins_NxC, gold_NxC) == pytest.approx(expected)
    # The order of the rows decides, so a threshold for each label changes nothing.
    assert average_precision(margins_NxC + np.arange(4) * 2.0, gold_NxC) == pytest.approx(expected)
    assert average_precision(margins_NxC, np.zeros_like(gold_NxC)) == 0.0


def test_models_agree_on_rows_to_which_they_give_the_same_labels() -> None:
    first_NxC = np.array([[1.0, -1.0], [2.0, 2.0], [-1.0, -1.0], [1.0, 1.0]])
    second_NxC = np.array([[0.2, -9.0], [2.0, -2.0], [-3.0, 0.0], [-1.0, -1.0]])
    assert same_set_share(first_NxC, second_NxC) == 0.5
    assert same_set_share(first_NxC, first_NxC) == 1.0


@pytest.mark.parametrize("function", [label_set_counts, average_precision, same_set_share])
def test_different_shapes_are_refused(function) -> None:
    for shape in ((3, 1), (2, 2), (3,)):
        with pytest.raises(ValueError, match="same rows x labels"):
            function(np.zeros((3, 2)), np.zeros(shape))
