"""Which direction of a metric is better, the Pareto front of several metrics, and the knee of the front.

This module knows points only, neither trials nor sweeps. Letters: N points, M objectives.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

from kdray.forms.metrics import FORM_METRICS
from kdray.tasks.kinds import task_metrics

QUALITY = "quality"
"""In settings, the name that stands for the quality metric of the task."""

Direction: TypeAlias = Literal["minimize", "maximize"]

_MINIMIZED_COSTS = frozenset(
    {
        "latency_ms",
        "latency_p95_ms",
        "cpu_latency_ms",
        "cpu_latency_p95_ms",
        "multiply_adds",
        "parameters",
        "size_mb",
    }
)
MINIMIZED = (
    _MINIMIZED_COSTS
    | {"loss"}
    | {name for name, metric in FORM_METRICS.items() if metric.base in _MINIMIZED_COSTS}
    | {metric.name for metric in task_metrics().values() if metric.direction == "minimize"}
)
"""The metrics of which a smaller value is better. Of every other metric a larger value is better."""


def direction(name: str) -> Direction:
    """The direction in which this metric becomes better."""
    return "minimize" if name in MINIMIZED else "maximize"


def dominates(point: Mapping[str, float], other: Mapping[str, float], objectives: Sequence[str]) -> bool:
    """Whether `point` is at least as good as `other` in every objective, and better in one of them."""
    point_M, other_M = _minimized_values([point, other], objectives)
    return bool(np.all(point_M <= other_M) and np.any(point_M < other_M))


def pareto_front(points: Sequence[Mapping[str, float]], objectives: Sequence[str]) -> list[int]:
    """The indices, in order, of the points that no other point dominates.

    A point without a finite value for every objective is never on the front, and dominates no other point.
    """
    values_NxM = _minimized_values(points, objectives)
    complete_N = np.isfinite(values_NxM).all(axis=1)
    on_front = []
    for index in np.flatnonzero(complete_N):
        not_worse_N = (values_NxM <= values_NxM[index]).all(axis=1)
        better_N = (values_NxM < values_NxM[index]).any(axis=1)
        if not (complete_N & not_worse_N & better_N).any():
            on_front.append(int(index))
    return on_front


def knee_distances(points: Sequence[Mapping[str, float]], quality: str, cost: str) -> list[float]:
    """How far each point is beyond the line between the two ends of the front, on axes scaled to the front.

    The point with the greatest distance is the knee: Satopaa et al. (2011), "Finding a 'Kneedle' in a haystack". The
    two ends have distance 0, as has every point of a front of fewer than three points. A point that is not on the front
    has minus infinity.
    """
    # First column: the cost, less is better. Second column: the quality, more is better.
    values_Nx2 = _minimized_values(points, (cost, quality)) * (1.0, -1.0)
    distances = [-np.inf] * len(points)
    on_front = pareto_front(points, (cost, quality))
    if on_front:
        lowest_2, highest_2 = values_Nx2[on_front].min(axis=0), values_Nx2[on_front].max(axis=0)
        # All points of a front may have the same value, for example if it has one point: no division by 0.
        spread_2 = np.where(highest_2 > lowest_2, highest_2 - lowest_2, 1.0)
        for index in on_front:
            x, y = (values_Nx2[index] - lowest_2) / spread_2
            # On these axes the ends are (0, 0) and (1, 1), so the line between them is y = x.
            distances[index] = float(y - x)
    return distances


def _minimized_values(points: Sequence[Mapping[str, float]], objectives: Sequence[str]) -> np.ndarray:
    """N x M: the values with the sign that makes less better everywhere; NaN if a point has no such objective."""
    signs_M = [1.0 if direction(name) == "minimize" else -1.0 for name in objectives]
    values = [[float(point.get(name, np.nan)) for name in objectives] for point in points]
    return np.array(values, dtype=np.float64).reshape(len(points), len(objectives)) * signs_M
