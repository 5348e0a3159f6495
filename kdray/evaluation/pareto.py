"""Objectives and the Pareto front: which points no other point beats. Pure numpy, knows no trials and no sweep."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

Direction: TypeAlias = Literal["minimize", "maximize"]

MINIMIZED = frozenset(
    {
        "latency_ms",
        "latency_p95_ms",
        "cpu_latency_ms",
        "cpu_latency_p95_ms",
        "multiply_adds",
        "parameters",
        "size_mb",
        "loss",
    }
)
"""Less of these is better; more of any other metric."""


def direction(name: str) -> Direction:
    """Which way is better for this metric."""
    return "minimize" if name in MINIMIZED else "maximize"


def dominates(point: Mapping[str, float], other: Mapping[str, float], objectives: Sequence[str]) -> bool:
    """Whether `point` is nowhere worse than `other` and somewhere better."""
    ours, theirs = _signed([point, other], objectives)
    return bool(np.all(ours <= theirs) and np.any(ours < theirs))


def pareto_front(points: Sequence[Mapping[str, float]], objectives: Sequence[str]) -> list[int]:
    """The indices, in order, of the points that none dominates; a point that lacks an objective is never among them."""
    signed_NxM = _signed(points, objectives)
    complete_N = np.isfinite(signed_NxM).all(axis=1)
    on_front = []
    for index in np.flatnonzero(complete_N):
        not_worse_N = (signed_NxM <= signed_NxM[index]).all(axis=1)
        better_N = (signed_NxM < signed_NxM[index]).any(axis=1)
        if not (complete_N & not_worse_N & better_N).any():
            on_front.append(int(index))
    return on_front


def knee_distances(points: Sequence[Mapping[str, float]], quality: str, cost: str) -> list[float]:
    """How far each point lies beyond the line between the front's ends, on axes scaled to that front.

    The farthest is the knee: Satopaa et al. (2011), "Finding a 'Kneedle' in a haystack". The ends, and every point of
    a front of fewer than three, have 0; what is not on the front has minus infinity.
    """
    values_Nx2 = _signed(points, (cost, quality)) * (1.0, -1.0)
    distances = [-np.inf] * len(points)
    on_front = pareto_front(points, (cost, quality))
    if on_front:
        lowest_2, highest_2 = values_Nx2[on_front].min(axis=0), values_Nx2[on_front].max(axis=0)
        spread_2 = np.where(highest_2 > lowest_2, highest_2 - lowest_2, 1.0)
        for index in on_front:
            x, y = (values_Nx2[index] - lowest_2) / spread_2
            distances[index] = float(y - x)
    return distances


def _signed(points: Sequence[Mapping[str, float]], objectives: Sequence[str]) -> np.ndarray:
    """Points x objectives, turned so that less is better everywhere; NaN where a point lacks an objective."""
    signs = [1.0 if direction(name) == "minimize" else -1.0 for name in objectives]
    values = [[float(point.get(name, np.nan)) for name in objectives] for point in points]
    return np.array(values, dtype=np.float64).reshape(len(points), len(objectives)) * signs
