"""How sure a figure is: bootstrap intervals of a metric, a ratio and a difference on the same rows; McNemar's test.

A test split is a sample: other rows would give other figures. The bootstrap draws rows with replacement many times and
measures how much a figure changes. Figures that are compared use the same draws (they are paired): a difficult row is
difficult for both candidates, so its effect cancels. If a candidate was trained with several seeds, seeds are drawn as
well as rows.

Letters: M candidates, N rows, R draws, S seeds, K counts. `choice` decides which candidates are compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from scipy import sparse
from scipy.stats import binomtest, norm

from kdray.tasks.counts import Counts

Metric: TypeAlias = Callable[[np.ndarray, np.ndarray], float]
"""A function of outputs (N x ...) and labels (N) that gives a number."""
Method: TypeAlias = Literal["bca", "percentile"]
Statistic: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""A function of the candidates' metrics (M x R) that gives one value for each draw (R)."""

RESAMPLES = 2_000
"""The number of draws."""
LEVEL = 0.95
"""The level of confidence."""
CELLS_IN_MEMORY = 4_000_000
"""The most numbers in one array. Draws are computed in parts, so that memory does not grow with their number."""


@dataclass(frozen=True)
class Interval:
    """A figure, and the range that would contain it on other rows, at this level of confidence."""

    estimate: float
    low: float
    high: float
    level: float = LEVEL

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    @property
    def width(self) -> float:
        return self.high - self.low


class ResampledMetric(Protocol):
    """A metric of one candidate that can be computed on any draw of the rows."""

    @property
    def rows(self) -> int: ...

    @property
    def seeds(self) -> int: ...

    @property
    def cells_per_draw(self) -> int:
        """The most numbers that an array of one draw contains."""
        ...

    def values(self, weights_RxN: np.ndarray) -> np.ndarray:
        """R x S: the metric of each seed on each draw, in which row n occurs `weights_RxN[r, n]` times."""
        ...


@dataclass(frozen=True)
class CountMetric:
    """A metric that is a function of counts summed over rows. It is fast, because a draw is one matrix product."""

    counts_SxNxK: tuple[sparse.csr_array, ...]
    """For each seed, how much each row adds to each of K counts."""
    metric: Callable[[np.ndarray], np.ndarray]
    """A function of summed counts (... x K) that gives values (...)."""

    @property
    def rows(self) -> int:
        return int(self.counts_SxNxK[0].shape[0])

    @property
    def seeds(self) -> int:
        return len(self.counts_SxNxK)

    @property
    def cells_per_draw(self) -> int:
        return max(self.counts_SxNxK[0].shape)

    def values(self, weights_RxN: np.ndarray) -> np.ndarray:
        """See `ResampledMetric.values`."""
        return np.stack([self.metric(weights_RxN @ counts_NxK) for counts_NxK in self.counts_SxNxK], axis=1)


@dataclass(frozen=True)
class ComputedMetric:
    """Any metric. It is slow, because it is computed again for every draw and seed."""

    metric: Metric
    outputs_SxN: np.ndarray
    """S x N x ...: classes, logits, or other outputs that the metric reads."""
    labels_N: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.labels_N)

    @property
    def seeds(self) -> int:
        return len(self.outputs_SxN)

    @property
    def cells_per_draw(self) -> int:
        return self.rows

    def values(self, weights_RxN: np.ndarray) -> np.ndarray:
        """See `ResampledMetric.values`."""
        draws = [np.repeat(np.arange(self.rows), weights_N) for weights_N in weights_RxN]
        return np.array(
            [[self.metric(outputs_N[rows], self.labels_N[rows]) for outputs_N in self.outputs_SxN] for rows in draws]
        )


def metric_of_counts(name: str, counts: Sequence[Counts]) -> CountMetric:
    """The metric with this name of one model, of its counts with each of its seeds."""
    return CountMetric(tuple(each.counts_NxK for each in counts), counts[0].metrics[name])


def bootstrap_interval(
    candidate: ResampledMetric,
    *,
    method: Method = "bca",
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """The interval of a metric, averaged over seeds, on other rows (and with other seeds, if there are several)."""
    return _interval([candidate], lambda values_MxR: values_MxR[0], method, resamples, level, seed)


def bootstrap_ratio(
    student: ResampledMetric,
    teacher: ResampledMetric,
    *,
    method: Method = "bca",
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """The interval of the retention: the student's metric over the teacher's, both on the same draws of the rows."""
    return _interval([student, teacher], _retention, method, resamples, level, seed)


def bootstrap_difference(
    first: ResampledMetric,
    second: ResampledMetric,
    *,
    method: Method = "bca",
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """The interval of the first metric minus the second, both on the same draws of the rows.

    The seeds of each candidate are drawn independently. An interval that contains zero means: these rows do not show
    which of the two is better.
    """
    return _interval([first, second], lambda values_MxR: values_MxR[0] - values_MxR[1], method, resamples, level, seed)


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of whether two classifiers are right equally often."""

    only_first: int
    """The number of rows for which the first classifier is right and the second is wrong."""
    only_second: int
    """The number of rows for which the second classifier is right and the first is wrong."""
    p: float
    """The p-value: how often a fair coin divides these rows at least as unevenly."""


def mcnemar(right_first_N: np.ndarray, right_second_N: np.ndarray) -> McNemar:
    """The exact two-sided test: under the null hypothesis `only_first` is binomial with n = b + c and p = 1/2.

    b is `only_first` and c is `only_second`. Raises ValueError if the classifiers did not answer equally many rows.

    McNemar (1947), "Note on the sampling error of the difference between correlated proportions or percentages"; the
    exact form as in Dietterich (1998), "Approximate statistical tests for comparing supervised classification learning
    algorithms", and in statsmodels' mcnemar(exact=True).
    """
    first_N, second_N = np.asarray(right_first_N, bool), np.asarray(right_second_N, bool)
    if first_N.shape != second_N.shape:
        raise ValueError(f"{first_N.size} and {second_N.size} rows: both classifiers must have answered the same rows.")
    b, c = int((first_N & ~second_N).sum()), int((second_N & ~first_N).sum())
    # binomtest refuses n = 0, but classifiers that are right on the same rows do not differ.
    p = float(binomtest(b, b + c).pvalue) if b + c else 1.0
    return McNemar(only_first=b, only_second=c, p=p)


def _interval(
    candidates: Sequence[ResampledMetric],
    statistic: Statistic,
    method: Method,
    resamples: int,
    level: float,
    seed: int,
) -> Interval:
    """The percentile or BCa interval of a statistic of the candidates' metrics."""
    rows = candidates[0].rows
    if any(candidate.rows != rows for candidate in candidates):
        counts = [candidate.rows for candidate in candidates]
        raise ValueError(f"{counts} rows: all candidates must have answered the same rows.")
    random = np.random.default_rng(seed)
    estimate = float(statistic(_means_over_seeds(candidates, np.ones((1, rows), np.int64)))[0])
    draws_R = np.concatenate(
        [statistic(_draw_means(candidates, count, random)) for count in _part_sizes(resamples, candidates)],
        dtype=np.float64,
    )
    quantiles = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "bca":
        quantiles = _bca_quantiles(quantiles, draws_R, estimate, lambda: _jackknife(candidates, statistic))
    low, high = np.quantile(draws_R, quantiles)
    # If every draw gives a smaller value than all rows do, the estimate is outside the quantiles. An interval must
    # contain its estimate, so it is widened.
    return Interval(estimate=estimate, low=min(float(low), estimate), high=max(float(high), estimate), level=level)


def _bca_quantiles(
    quantiles: np.ndarray, draws_R: np.ndarray, estimate: float, jackknife: Callable[[], np.ndarray]
) -> np.ndarray:
    """The quantiles of the draws that bound a BCa interval: corrected for bias (z0) and acceleration (a).

    Efron (1987), "Better bootstrap confidence intervals"; Efron and Tibshirani (1993), "An introduction to the
    bootstrap", section 14.3.
    """
    # Ties count half, as in scipy.
    below = ((draws_R < estimate).mean() + (draws_R <= estimate).mean()) / 2
    if not 0 < below < 1:
        return quantiles  # z0 would be infinite
    left_out_N = jackknife()
    deviations_N = left_out_N.mean() - left_out_N
    spread = (deviations_N**2).sum() ** 1.5
    a = (deviations_N**3).sum() / (6 * spread) if spread > 0 else 0.0
    z0, z = norm.ppf(below), norm.ppf(quantiles)
    return np.asarray(norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))))


def _jackknife(candidates: Sequence[ResampledMetric], statistic: Statistic) -> np.ndarray:
    """N: the statistic of all rows but one, for each row that is left out."""
    rows = candidates[0].rows
    if rows == 1:
        return np.zeros(1)  # no row remains, so no metric is defined
    parts, start = [], 0
    for count in _part_sizes(rows, candidates):
        weights_RxN = np.ones((count, rows), np.int64)
        weights_RxN[np.arange(count), start + np.arange(count)] = 0
        parts.append(statistic(_means_over_seeds(candidates, weights_RxN)))
        start += count
    return np.concatenate(parts)


def _draw_means(candidates: Sequence[ResampledMetric], count: int, random: np.random.Generator) -> np.ndarray:
    """M x count: each candidate's metric on the same draws of rows, averaged over a draw of the candidate's seeds.

    Of S seeds S - 1 are drawn. Draws of S seeds would make the variance between seeds too small by the factor
    (S - 1) / S, with three seeds by a third: Hesterberg (2015), "What teachers should know about the bootstrap", on
    narrowness bias.
    """
    weights_RxN = _draw_weights(count, candidates[0].rows, random)
    means = []
    for candidate in candidates:
        values_RxS = candidate.values(weights_RxN)
        if candidate.seeds > 1:
            seeds = random.integers(candidate.seeds, size=(count, candidate.seeds - 1))
            values_RxS = np.take_along_axis(values_RxS, seeds, axis=1)
        means.append(values_RxS.mean(axis=1))
    return np.stack(means)


def _means_over_seeds(candidates: Sequence[ResampledMetric], weights_RxN: np.ndarray) -> np.ndarray:
    """M x R: each candidate's metric on each draw, averaged over all its seeds."""
    return np.stack([candidate.values(weights_RxN).mean(axis=1) for candidate in candidates])


def _draw_weights(count: int, rows: int, random: np.random.Generator) -> np.ndarray:
    """count x rows: how often each row occurs in each draw of `rows` rows with replacement."""
    # Draw r counts its rows from r * rows on, so that one bincount counts all draws.
    numbers = random.integers(rows, size=(count, rows)) + rows * np.arange(count)[:, None]
    return np.bincount(numbers.ravel(), minlength=count * rows).reshape(count, rows)


def _part_sizes(total: int, candidates: Sequence[ResampledMetric]) -> list[int]:
    """The sizes of the parts in which `total` draws are computed, so that each part fits into memory."""
    size = max(1, min(total, CELLS_IN_MEMORY // max(candidate.cells_per_draw for candidate in candidates)))
    return [size] * (total // size) + ([total % size] if total % size else [])


def _retention(values_MxR: np.ndarray) -> np.ndarray:
    """The ratio of the first metric to the second; 0 where the second is 0, as in `quality.student_quality`."""
    student_R, teacher_R = values_MxR
    return np.divide(student_R, teacher_R, out=np.zeros_like(student_R), where=teacher_R != 0)
