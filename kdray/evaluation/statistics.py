"""How sure a figure is: bootstrap intervals of a metric, a ratio and a difference on the same rows; McNemar's test.

A test split is a sample: other rows would have given other figures. The bootstrap draws rows anew, with replacement,
and looks how much a figure moves. Figures that are compared see the same draws (they are paired): what is hard about a
row is hard for both, and cancels. Where a candidate was trained over several seeds, seeds are drawn as well as rows.

Letters: N rows, R draws, S seeds, C classes. Who is compared with whom is `choice`'s business.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from scipy import sparse
from scipy.stats import binomtest, norm

from kdray.errors import SpecError, did_you_mean

Metric: TypeAlias = Callable[[np.ndarray, np.ndarray], float]
"""From outputs (N x ...) and labels (N) to a number."""
Method: TypeAlias = Literal["bca", "percentile"]

RESAMPLES = 2_000
LEVEL = 0.95
CELLS = 4_000_000
"""Weights held at once: draws are worked off in parts, so that memory does not grow with them."""


@dataclass(frozen=True)
class Interval:
    """A figure and where it would lie on other rows, at this level of confidence."""

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
    """A candidate's metric on any draw of the rows."""

    @property
    def rows(self) -> int: ...

    @property
    def seeds(self) -> int: ...

    @property
    def cells(self) -> int:
        """How many numbers one draw needs."""
        ...

    def values(self, weights_RxN: np.ndarray) -> np.ndarray:
        """R x S: the metric of each seed when row n is there `weights_RxN[r, n]` times."""
        ...


@dataclass(frozen=True)
class CountMetric:
    """A metric that is a function of counts summed over rows: quick, for a draw is one matrix product."""

    counts_SxNxK: tuple[sparse.csr_array, ...]
    """For each seed what each row adds to each of K counts."""
    metric: Callable[[np.ndarray], np.ndarray]
    """From summed counts (... x K) to values (...)."""

    @property
    def rows(self) -> int:
        return int(self.counts_SxNxK[0].shape[0])

    @property
    def seeds(self) -> int:
        return len(self.counts_SxNxK)

    @property
    def cells(self) -> int:
        return max(self.counts_SxNxK[0].shape)

    def values(self, weights_RxN: np.ndarray) -> np.ndarray:
        """See Measured."""
        return np.stack([self.metric(weights_RxN @ counts_NxK) for counts_NxK in self.counts_SxNxK], axis=1)


@dataclass(frozen=True)
class ComputedMetric:
    """Any metric, computed anew for every draw and seed: slow."""

    metric: Metric
    outputs_SxN: np.ndarray
    """S x N x ...: classes, logits or whatever the metric reads."""
    labels_N: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.labels_N)

    @property
    def seeds(self) -> int:
        return len(self.outputs_SxN)

    @property
    def cells(self) -> int:
        return self.rows

    def values(self, weights_RxN: np.ndarray) -> np.ndarray:
        """See Measured."""
        drawn = [np.repeat(np.arange(self.rows), weights_N) for weights_N in weights_RxN]
        return np.array([[self.metric(one[rows], self.labels_N[rows]) for one in self.outputs_SxN] for rows in drawn])


def classification_metric(metric: str, answers_SxN: np.ndarray, labels_N: np.ndarray) -> CountMetric:
    """The accuracy, macro_f1 or mcc of classes that were answered, by one seed (N) or several (S x N).

    All three are functions of the confusion matrix, whose cells are counts of rows. Raises SpecError for another name.
    """
    if metric not in CONFUSION_METRICS:
        raise SpecError(f"statistics: no quick metric {metric!r}; {did_you_mean(metric, CONFUSION_METRICS)}")
    answers_SxN = np.atleast_2d(answers_SxN)
    if answers_SxN.shape[1] != len(labels_N):
        raise ValueError(f"answers for {answers_SxN.shape[1]} rows, labels for {len(labels_N)}: they must be the same.")
    classes = int(max(answers_SxN.max(), labels_N.max())) + 1
    rows = np.arange(len(labels_N))
    ones = np.ones(len(labels_N))
    shape = (len(labels_N), classes**2)
    cells = (sparse.csr_array((ones, (rows, labels_N * classes + one)), shape=shape) for one in answers_SxN)
    of_matrix = CONFUSION_METRICS[metric]
    return CountMetric(tuple(cells), lambda sums: of_matrix(sums.reshape(*sums.shape[:-1], classes, classes)))


def bootstrap_interval(
    measured: ResampledMetric,
    *,
    method: Method = "bca",
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Where a metric would lie on other rows (and, for several seeds, with others): the mean over seeds."""
    return _interval([measured], lambda values_MxR: values_MxR[0], method, resamples, level, seed)


def bootstrap_ratio(
    student: ResampledMetric,
    teacher: ResampledMetric,
    *,
    method: Method = "bca",
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Where retention lies: the student's metric over the teacher's, both on the same draws of the rows."""
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
    """Where the first's metric minus the second's lies, both on the same draws of the rows; each draws its own seeds.

    An interval across zero: these rows do not tell the two apart.
    """
    return _interval([first, second], lambda values_MxR: values_MxR[0] - values_MxR[1], method, resamples, level, seed)


@dataclass(frozen=True)
class McNemar:
    """Whether two classifiers are right equally often, by the rows on which only one of them is."""

    only_first: int
    """Rows that the first has right and the second wrong."""
    only_second: int
    p: float
    """How often a fair coin would divide these rows as unevenly, or more so."""


def mcnemar(right_first_N: np.ndarray, right_second_N: np.ndarray) -> McNemar:
    """The exact, two-sided test: under the null hypothesis `only_first` is binomial with n = b + c and p = 1/2.

    McNemar (1947), "Note on the sampling error of the difference between correlated proportions or percentages"; the
    exact form as in Dietterich (1998), "Approximate statistical tests for comparing supervised classification learning
    algorithms", and statsmodels' mcnemar(exact=True).
    """
    first_N, second_N = np.asarray(right_first_N, bool), np.asarray(right_second_N, bool)
    if first_N.shape != second_N.shape:
        raise ValueError(f"{first_N.size} and {second_N.size} rows: the two must have answered the same ones.")
    b, c = int((first_N & ~second_N).sum()), int((second_N & ~first_N).sum())
    return McNemar(b, c, float(binomtest(b, b + c).pvalue) if b + c else 1.0)


def _interval(
    candidates: Sequence[ResampledMetric],
    combined: Callable[[np.ndarray], np.ndarray],
    method: Method,
    resamples: int,
    level: float,
    seed: int,
) -> Interval:
    """The percentile or BCa interval of a function of the candidates' metrics (M x R to R)."""
    rows = candidates[0].rows
    if any(candidate.rows != rows for candidate in candidates):
        raise ValueError(f"{[candidate.rows for candidate in candidates]} rows: all must have answered the same ones.")
    random = np.random.default_rng(seed)
    estimate = float(combined(_means(candidates, np.ones((1, rows), np.int64)))[0])
    draws_R = np.concatenate(
        [combined(_drawn(candidates, count, random)) for count in _parts(resamples, candidates)], dtype=np.float64
    )
    shares = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "bca":
        shares = _corrected(shares, draws_R, estimate, lambda: _left_out(candidates, combined))
    low, high = np.quantile(draws_R, shares)
    # A statistic that every draw makes smaller can leave its own estimate outside; no interval here does.
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate), level)


def _corrected(
    shares: np.ndarray, draws_R: np.ndarray, estimate: float, jackknife: Callable[[], np.ndarray]
) -> np.ndarray:
    """The shares of the draws that bound a BCa interval: corrected for bias (z0) and acceleration (a).

    Efron (1987), "Better bootstrap confidence intervals"; Efron and Tibshirani (1993), "An introduction to the
    bootstrap", section 14.3. Ties count half, as in scipy.
    """
    below = ((draws_R < estimate).mean() + (draws_R <= estimate).mean()) / 2
    if not 0 < below < 1:
        return shares
    off_N = jackknife()
    off_N = off_N.mean() - off_N
    spread = (off_N**2).sum() ** 1.5
    a = (off_N**3).sum() / (6 * spread) if spread > 0 else 0.0
    z0, z = norm.ppf(below), norm.ppf(shares)
    return np.asarray(norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))))


def _left_out(candidates: Sequence[ResampledMetric], combined: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The statistic without each of the rows in turn."""
    rows = candidates[0].rows
    if rows == 1:
        return np.zeros(1)
    found, start = [], 0
    for count in _parts(rows, candidates):
        weights_RxN = np.ones((count, rows), np.int64)
        weights_RxN[np.arange(count), start + np.arange(count)] = 0
        found.append(combined(_means(candidates, weights_RxN)))
        start += count
    return np.concatenate(found)


def _drawn(candidates: Sequence[ResampledMetric], count: int, random: np.random.Generator) -> np.ndarray:
    """M x count: each candidate's metric on the same draws of rows, averaged over a draw of its own seeds.

    Of S seeds S - 1 are drawn, for S would make the spread between seeds too small by (S - 1) / S, which with three
    seeds is a third: Hesterberg (2015), "What teachers should know about the bootstrap", on narrowness bias.
    """
    weights_RxN = _weights(count, candidates[0].rows, random)
    found = []
    for candidate in candidates:
        values_RxS = candidate.values(weights_RxN)
        if candidate.seeds > 1:
            chosen = random.integers(candidate.seeds, size=(count, candidate.seeds - 1))
            values_RxS = np.take_along_axis(values_RxS, chosen, axis=1)
        found.append(values_RxS.mean(axis=1))
    return np.stack(found)


def _means(candidates: Sequence[ResampledMetric], weights_RxN: np.ndarray) -> np.ndarray:
    return np.stack([candidate.values(weights_RxN).mean(axis=1) for candidate in candidates])


def _weights(count: int, rows: int, random: np.random.Generator) -> np.ndarray:
    """count x rows: how often each row is drawn when `rows` of them are drawn with replacement."""
    drawn = random.integers(rows, size=(count, rows)) + rows * np.arange(count)[:, None]
    return np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows)


def _parts(total: int, candidates: Sequence[ResampledMetric]) -> list[int]:
    """`total` draws in parts of a bearable size."""
    size = max(1, min(total, CELLS // max(candidate.cells for candidate in candidates)))
    return [size] * (total // size) + ([total % size] if total % size else [])


def _retention(values_MxR: np.ndarray) -> np.ndarray:
    """The ratio of the first to the second; 0 where the second is 0, as in `trial.quality`."""
    student_R, teacher_R = values_MxR
    return np.divide(student_R, teacher_R, out=np.zeros_like(student_R), where=teacher_R != 0)


def accuracy(confusion_CxC: np.ndarray) -> np.ndarray:
    """The share of rows on the diagonal; labels are the matrix's rows, answers its columns."""
    return np.trace(confusion_CxC, axis1=-2, axis2=-1) / confusion_CxC.sum(axis=(-2, -1))


def macro_f1(confusion_CxC: np.ndarray) -> np.ndarray:
    """The mean over classes of F1 = 2 TP / (2 TP + FP + FN); classes that neither occur nor are answered do not count.

    As scikit-learn's f1_score(average="macro", zero_division=0) has it, which knows only classes that it sees.
    """
    right = np.diagonal(confusion_CxC, axis1=-2, axis2=-1)
    seen = confusion_CxC.sum(axis=-1) + confusion_CxC.sum(axis=-2)
    there = seen > 0
    return np.divide(2 * right, seen, out=np.zeros_like(right), where=there).sum(axis=-1) / there.sum(axis=-1)


def mcc(confusion_CxC: np.ndarray) -> np.ndarray:
    """Matthews' correlation coefficient for C classes; 0 where labels or answers are all of one class.

    Gorodkin (2004), "Comparing two K-category assignments by a K-category correlation coefficient", as in scikit-learn.
    """
    rows = confusion_CxC.sum(axis=(-2, -1))
    labels_C, answers_C = confusion_CxC.sum(axis=-1), confusion_CxC.sum(axis=-2)
    shared = np.trace(confusion_CxC, axis1=-2, axis2=-1) * rows - (labels_C * answers_C).sum(axis=-1)
    spread = (rows**2 - (labels_C**2).sum(axis=-1)) * (rows**2 - (answers_C**2).sum(axis=-1))
    return np.divide(shared, np.sqrt(spread), out=np.zeros_like(shared), where=spread > 0)


CONFUSION_METRICS = {"accuracy": accuracy, "macro_f1": macro_f1, "mcc": mcc}
