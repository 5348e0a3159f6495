"""Thresholds: compare the chosen ones with a search through all cuts, and try ties, rare labels and extreme logits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit, logit

from kdray.tasks import thresholds
from kdray.tasks.thresholds import COMMON_WEIGHT, common_threshold, label_thresholds, threshold_margins

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 4))
# Multiples of 1e-5: logits near 0 that differ by 1e-45 have the same probability.
LOGITS = st.integers(-3_000_000, 3_000_000).map(lambda number: np.float32(number * 1e-5))
# Few different logits, so that there are ties within a label and between labels.
TIED_LOGITS = st.sampled_from([-25.0, -3.0, -0.5, 0.0, 1e-6, 2.0, 21.0, 25.0])
ROWS = SHAPES.flatmap(
    lambda shape: st.tuples(
        st.one_of(arrays(np.float32, shape, elements=LOGITS), arrays(np.float32, shape, elements=TIED_LOGITS)),
        arrays(np.int8, shape, elements=st.integers(0, 1)),
    )
)
FEW = settings(max_examples=100, deadline=None)


def macro_f1(logits_NxC: np.ndarray, gold_NxC: np.ndarray, thresholds_C: np.ndarray) -> float:
    answers_NxC, gold_NxC = threshold_margins(logits_NxC, thresholds_C) > 0, gold_NxC > 0
    both_C = answers_NxC.sum(axis=0) + gold_NxC.sum(axis=0)
    return float((2 * (answers_NxC & gold_NxC).sum(axis=0) / np.maximum(both_C, 1)).mean())


def all_cuts(logits_NxC: np.ndarray) -> np.ndarray:
    """One threshold between each two neighbouring logits, one below all and one above all."""
    values = np.unique(np.clip(logits_NxC.astype(np.float64), -80, 20))
    return expit(np.concatenate([[-81.0], (values[1:] + values[:-1]) / 2, [21.0]]))


@FEW
@given(ROWS)
def test_the_common_threshold_has_the_best_macro_f1_of_all_cuts(rows) -> None:
    logits_NxC, gold_NxC = rows
    chosen_C = common_threshold(logits_NxC, gold_NxC)
    assert len(set(chosen_C)) == 1
    assert 0 < chosen_C[0] < 1
    labels = gold_NxC.shape[1]
    best = max(macro_f1(logits_NxC, gold_NxC, np.full(labels, cut)) for cut in all_cuts(logits_NxC))
    assert macro_f1(logits_NxC, gold_NxC, chosen_C) == pytest.approx(best, abs=1e-12)


@FEW
@given(ROWS)
def test_each_labels_own_cut_has_its_best_f1(rows) -> None:
    logits_NxC, gold_NxC = rows
    own_C = thresholds._best_cuts(*thresholds._f1_of_cuts(logits_NxC, gold_NxC))
    assert ((own_C > 0) & (own_C < 1)).all()
    for label in np.flatnonzero(gold_NxC.any(axis=0)):
        column = logits_NxC[:, [label]], gold_NxC[:, [label]]
        best = max(macro_f1(*column, np.array([cut])) for cut in all_cuts(column[0]))
        assert macro_f1(*column, own_C[[label]]) == pytest.approx(best, abs=1e-12)


def rows_of_two_labels(positives: int) -> tuple[np.ndarray, np.ndarray]:
    """A frequent label whose best threshold is 0.5, and one with so many positive rows, which all have the logit 3."""
    gold_NxC = np.zeros((200, 2), np.int8)
    gold_NxC[:100, 0] = gold_NxC[:positives, 1] = 1
    return np.where(gold_NxC == 1, [1.0, 3.0], [-1.0, 1.5]), gold_NxC


@pytest.mark.parametrize("positives", [0, 1, 3, 50])
def test_a_rare_label_is_drawn_towards_the_common_threshold(positives: int) -> None:
    logits_NxC, gold_NxC = rows_of_two_labels(positives)
    common, chosen = common_threshold(logits_NxC, gold_NxC)[1], label_thresholds(logits_NxC, gold_NxC)[1]
    own = (expit(3.0) + expit(1.5)) / 2
    if positives == 0:
        assert chosen == common
    else:
        weights = np.array([positives, COMMON_WEIGHT]) / (positives + COMMON_WEIGHT)
        assert logit(chosen) == pytest.approx(weights @ [logit(own), logit(common)])


def test_many_positive_rows_decide_alone() -> None:
    random = np.random.default_rng(0)
    gold_NxC = (random.random((5000, 2)) < 0.3).astype(np.int8)
    logits_NxC = random.normal(gold_NxC * 2.0, 1.0) + np.array([-4.0, 3.0])
    chosen_C = label_thresholds(logits_NxC, gold_NxC)
    for label in range(2):
        column = logits_NxC[:, [label]], gold_NxC[:, [label]]
        assert macro_f1(*column, chosen_C[[label]]) > macro_f1(*column, common_threshold(*column)) - 0.005
    common_C = common_threshold(logits_NxC, gold_NxC)
    assert macro_f1(logits_NxC, gold_NxC, chosen_C) > macro_f1(logits_NxC, gold_NxC, common_C) + 0.1


def test_new_rows_gain_by_the_draw_towards_the_common_threshold() -> None:
    """Labels with the same best threshold and very few positive rows: their own thresholds are chosen by luck."""
    random = np.random.default_rng(0)
    gold_NxC = (random.random((600, 40)) < 0.02).astype(np.int8)
    new_NxC = (random.random((20_000, 40)) < 0.02).astype(np.int8)
    logits_NxC, new_logits_NxC = (random.normal(2.0 * gold - 1.0, 1.0) for gold in (gold_NxC, new_NxC))
    own_C = thresholds._best_cuts(*thresholds._f1_of_cuts(logits_NxC, gold_NxC))
    gain = macro_f1(new_logits_NxC, new_NxC, label_thresholds(logits_NxC, gold_NxC))
    assert gain > macro_f1(new_logits_NxC, new_NxC, own_C) + 0.005


def test_of_equally_good_cuts_the_widest_gap_is_taken_and_the_threshold_is_midway() -> None:
    probabilities_N = np.array([0.05, 0.1, 0.5, 0.9])
    gold_N = np.array([0, 0, 1, 1])
    logits_NxC, gold_NxC = logit(probabilities_N)[:, None], gold_N[:, None]
    assert common_threshold(logits_NxC, gold_NxC) == pytest.approx([0.3], abs=1e-6)
    # F1 = 2/3 if the label is given to the highest row only, and if it is given to all four.
    gold_NxC = np.array([[1], [0], [0], [1]])
    assert common_threshold(logits_NxC, gold_NxC) == pytest.approx([0.7], abs=1e-6)


def test_a_label_that_all_rows_have_is_given_to_all() -> None:
    logits_NxC = np.linspace(-2, 2, 30)[:, None]
    chosen_C = label_thresholds(logits_NxC, np.ones((30, 1)))
    assert (threshold_margins(logits_NxC, chosen_C) > 0).all()


@pytest.mark.parametrize("choose", [common_threshold, label_thresholds])
def test_rows_that_say_nothing_give_one_half(choose) -> None:
    logits_NxC = np.arange(6.0).reshape(3, 2)
    assert choose(logits_NxC, np.zeros((3, 2))).tolist() == [0.5, 0.5]
    for wrong in (np.nan, np.inf):
        assert choose(np.full((3, 2), wrong), np.ones((3, 2))).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("limit", [19.9, 5.0, 1e-6, -1e-6, -19.9, -79.0])
def test_a_threshold_divides_neighbouring_float32_logits(limit: float) -> None:
    lower = np.float32(limit)
    upper = np.nextafter(lower, np.float32(np.inf))
    logits_NxC = np.array([[lower], [upper]], np.float32)
    chosen_C = common_threshold(logits_NxC, np.array([[0], [1]]))
    assert (threshold_margins(logits_NxC, chosen_C) > 0).ravel().tolist() == [False, True]


def test_logits_that_are_too_near_to_each_other_count_as_equal() -> None:
    """Above a logit of 20, float64 has too few probabilities to divide the rows; all of them get the label."""
    logits_NxC = np.array([[-1.0], [22.0], [30.0], [50.0]])
    chosen_C = common_threshold(logits_NxC, np.array([[0], [0], [1], [1]]))
    assert (threshold_margins(logits_NxC, chosen_C) > 0).ravel().tolist() == [False, True, True, True]
    near_NxC = np.array([[0.0], [1e-40]], np.float32)
    chosen_C = common_threshold(near_NxC, np.array([[0], [1]]))
    assert (threshold_margins(near_NxC, chosen_C) > 0).all()


def test_margins_are_differences_of_logits() -> None:
    margins_NxC = threshold_margins(np.array([[1.0, -2.0]], np.float32), np.array([0.5, 0.1]))
    assert margins_NxC.dtype == np.float64
    assert margins_NxC == pytest.approx(np.array([[1.0, -2.0 - logit(0.1)]]))
