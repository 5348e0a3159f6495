"""Whether two systems differ by chance: the approximate randomisation test of any metric on the same rows.

If two systems were equally good, it would not matter which of them gave which of the two outputs of a row. So each
shuffle exchanges the outputs of each row with probability 1/2 and computes the difference of the metric again; p is
about the share of shuffles whose difference is at least as large as the one found. Noreen (1989), "Computer-intensive
methods for testing hypotheses"; Yeh (2000), "More accurate tests for the statistical significance of result
differences", with F1 as its case. `statistics` has McNemar's test, for metrics of one right or wrong answer a row.

Letters: N rows, R shuffles, K counts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kdray.evaluation.statistics import CELLS_IN_MEMORY, ComputedMetric, CountMetric

SHUFFLES = 9_999
"""The number of shuffles: p is then a multiple of 1 / 10,000."""
_ROUNDING = 1e-10
"""Differences that are equal but for this share of the metrics are equal: sums are added in another order."""

Exchange = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From R x D (1 where the outputs of one of D rows are exchanged) to the metrics (R) of both systems."""


@dataclass(frozen=True)
class Randomisation:
    """The result of an approximate randomisation test."""

    estimate: float
    """The first system's metric minus the second's."""
    p: float
    """The p-value: how often a fair coin makes a difference at least as large, on one side or the other."""
    shuffles: int


def randomisation_test(
    first: CountMetric | ComputedMetric,
    second: CountMetric | ComputedMetric,
    *,
    shuffles: int = SHUFFLES,
    seed: int = 0,
) -> Randomisation:
    """The two-sided test of the difference of one metric of two systems: p = (as large + 1) / (shuffles + 1).

    Of a system with several seeds, the first is compared, because a shuffle exchanges the outputs of two models. A
    shuffle whose metric is nan counts as large. Both systems must have the same metric, and counts with the same
    meaning (numbers in the same units and with the same centre): the function is that of `first`.
    Raises ValueError if the systems did not answer the same rows, or are not the same kind of metric.
    """
    if first.rows != second.rows:
        raise ValueError(f"{first.rows} and {second.rows} rows: both systems must have answered the same rows.")
    different_rows, exchange = _exchange(first, second)
    value_first, value_second = (float(value[0]) for value in exchange(np.zeros((1, different_rows), np.int8)))
    estimate = value_first - value_second
    least = abs(estimate) - _ROUNDING * max(abs(value_first), abs(value_second))
    random = np.random.default_rng(seed)
    part = max(1, CELLS_IN_MEMORY // first.cells_per_draw)
    done = as_large = 0
    while done < shuffles:
        count = min(shuffles - done, part)
        exchanged_first_R, exchanged_second_R = exchange(
            random.integers(2, size=(count, different_rows), dtype=np.int8)
        )
        # Not `>=`: a comparison with nan is false, and nan must not look like a small difference.
        as_large += count - int((np.abs(exchanged_first_R - exchanged_second_R) < least).sum())
        done += count
    return Randomisation(estimate=estimate, p=(as_large + 1) / (shuffles + 1), shuffles=shuffles)


def _exchange(first: CountMetric | ComputedMetric, second: CountMetric | ComputedMetric) -> tuple[int, Exchange]:
    """The number of rows in which the systems differ, and the function that exchanges the outputs of these rows.

    To exchange equal outputs changes nothing, so the other rows need no coin.
    """
    if isinstance(first, CountMetric) and isinstance(second, CountMetric):
        return _exchange_counts(first, second)
    if isinstance(first, ComputedMetric) and isinstance(second, ComputedMetric):
        return _exchange_outputs(first, second)
    kinds = f"{type(first).__name__} and {type(second).__name__}"
    raise ValueError(f"{kinds}: the outputs of two systems can be exchanged only if both are the same kind of metric.")


def _exchange_counts(first: CountMetric, second: CountMetric) -> tuple[int, Exchange]:
    first_NxK, second_NxK = first.counts_SxNxK[0], second.counts_SxNxK[0]
    if first_NxK.shape[1] != second_NxK.shape[1]:
        counts = f"{first_NxK.shape[1]} and {second_NxK.shape[1]}"
        raise ValueError(f"{counts} counts: both systems must have the counts of the same metric.")
    differences_NxK = (second_NxK - first_NxK).tocsr()
    differences_NxK.eliminate_zeros()
    differences_DxK = differences_NxK[np.flatnonzero(np.diff(differences_NxK.indptr))]
    first_K, second_K = first_NxK.sum(axis=0), second_NxK.sum(axis=0)

    def exchange(exchanged_RxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # What one system wins by the exchange, the other loses: one product serves both.
        change_RxK = exchanged_RxD @ differences_DxK
        return first.metric(first_K + change_RxK), first.metric(second_K - change_RxK)

    return differences_DxK.shape[0], exchange


def _exchange_outputs(first: ComputedMetric, second: ComputedMetric) -> tuple[int, Exchange]:
    if not np.array_equal(first.labels_N, second.labels_N):
        raise ValueError("the labels differ: both systems must have answered the same rows.")
    first_N, second_N = first.outputs_SxN[0], second.outputs_SxN[0]
    different_D = np.flatnonzero((first_N != second_N).reshape(len(first_N), -1).any(axis=1))

    def metrics(exchanged_D: np.ndarray) -> tuple[float, float]:
        rows = different_D[exchanged_D.astype(bool)]
        one_N, other_N = first_N.copy(), second_N.copy()
        one_N[rows], other_N[rows] = second_N[rows], first_N[rows]
        return first.metric(one_N, first.labels_N), first.metric(other_N, first.labels_N)

    def exchange(exchanged_RxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        one_R, other_R = np.array([metrics(exchanged_D) for exchanged_D in exchanged_RxD]).T
        return one_R, other_R

    return len(different_D), exchange
