"""One number a row: what each row adds to the sums of the metrics, and the metrics of these sums.

Letters: N rows, K = 8 sums: 1, x, y, x^2, y^2, xy, |d| and d^2, where d is output minus gold, and x and y are output
and gold minus one constant, the centre. Pearson does not change by it, and without it the sums of numbers that are far
from zero would cancel.

Everything whose sums meet needs one centre: the parts of the rows that several ranks evaluate, and two models that an
approximate randomisation test exchanges the outputs of. Candidates of a bootstrap and seeds need not share it. The mean
of the gold numbers is the default, because all models and seeds that are compared on the same rows have it in common.
"""

from collections.abc import Mapping

import numpy as np
from scipy import sparse
from scipy.stats import rankdata

from kdray.tasks.counts import MetricOfCounts


def number_counts(outputs_N: np.ndarray, gold_N: np.ndarray, centre: float | None = None) -> sparse.csr_array:
    """N x K: how much each row adds to each sum, in float64. `centre` None means the mean of the gold numbers.

    A row without gold (nan) counts nothing. A row with gold whose output is not finite has nan in all sums, so that all
    metrics are nan. Raises ValueError if outputs and gold are not equally many numbers.
    """
    outputs_N, gold_N = _two_numbers(outputs_N, gold_N)
    centre = float(np.nanmean(gold_N)) if centre is None else centre
    outputs_N = np.where(np.isfinite(outputs_N), outputs_N, np.nan)
    x_N, y_N, difference_N = outputs_N - centre, gold_N - centre, outputs_N - gold_N
    columns = (np.ones_like(x_N), x_N, y_N, x_N**2, y_N**2, x_N * y_N, np.abs(difference_N), difference_N**2)
    counts_NxK = np.stack(columns, axis=1)
    counts_NxK[np.isnan(outputs_N)] = np.nan
    counts_NxK[np.isnan(gold_N)] = 0.0
    return sparse.csr_array(counts_NxK)


def pearson(sums: np.ndarray) -> np.ndarray:
    """Pearson's correlation coefficient of outputs and gold, of summed counts (... x K); 0 if a side has no spread.

    A side has no spread if its variance is not larger than the rounding of the sums: if its standard deviation is about
    a millionth of its distance from the centre, or less.
    """
    rows, x, y, xx, yy, xy = np.moveaxis(np.asarray(sums, np.float64)[..., :6], -1, 0)
    spread_x, spread_y, shared = xx - x * x / rows, yy - y * y / rows, xy - x * y / rows
    # The error of a sum of n numbers is at most n times the rounding of one.
    rounding = 2 * np.finfo(np.float64).eps * rows
    is_flat = (spread_x <= rounding * xx) | (spread_y <= rounding * yy)
    # Square roots first: the product of two small variances could be 0.
    scale = np.sqrt(np.where(is_flat, 1.0, spread_x)) * np.sqrt(np.where(is_flat, 1.0, spread_y))
    return np.where(is_flat, 0.0, np.clip(shared / scale, -1.0, 1.0))


def mean_squared_error(sums: np.ndarray) -> np.ndarray:
    """The mean of (output - gold)^2, of summed counts (... x K)."""
    return np.asarray(sums[..., 7] / sums[..., 0])


def mean_absolute_error(sums: np.ndarray) -> np.ndarray:
    """The mean of |output - gold|, of summed counts (... x K)."""
    return np.asarray(sums[..., 6] / sums[..., 0])


NUMBER_METRICS: Mapping[str, MetricOfCounts] = {
    "pearson": pearson,
    "mse": mean_squared_error,
    "mae": mean_absolute_error,
}
"""The metrics that are functions of summed counts. Spearman is not: a draw of the rows has other ranks."""


def spearman(outputs_N: np.ndarray, gold_N: np.ndarray) -> float:
    """Spearman's rank correlation; equal numbers have their mean rank. 0 if a side has no spread.

    nan if an output is not finite. Raises ValueError if outputs and gold are not equally many numbers.
    """
    outputs_N, gold_N = _two_numbers(outputs_N, gold_N)
    if not np.isfinite(outputs_N).all():
        return float("nan")
    return correlation(rankdata(outputs_N), rankdata(gold_N))


def correlation(first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Pearson's correlation of the outputs of two models, their agreement; 0 if one of them has no spread.

    nan if a number is not finite. Raises ValueError if they are not equally many.
    """
    first_N, second_N = _two_numbers(first_N, second_N)
    if not (np.isfinite(first_N).all() and np.isfinite(second_N).all()):
        return float("nan")
    # Each side has its own centre here, because these sums meet no others.
    return float(pearson(number_counts(first_N - first_N.mean(), second_N - second_N.mean(), 0.0).sum(axis=0)))


def _two_numbers(first_N: np.ndarray, second_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first_N, second_N = np.asarray(first_N, np.float64), np.asarray(second_N, np.float64)
    # N x 1 outputs and N gold numbers would make N x N differences.
    if first_N.ndim != 1 or first_N.shape != second_N.shape:
        raise ValueError(f"shapes {first_N.shape} and {second_N.shape}: both must be one number for each row.")
    return first_N, second_N
