"""Early stopping: asynchronous successive halving among comparable trials.

A rung is a number of evaluations. At each rung a trial continues only while it is among the best trials that have
reached the rung. Compared are only trials with the same costs and the same length of training, so that a shallow
student is never stopped because it is shallow. The decision depends only on what the ledger stores: it is the same
before and after a restart. Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Hashable, Mapping, Sequence

from pydantic import Field

from kdray.evaluation.pareto import direction
from kdray.settings import Settings


class Halving(Settings):
    """At each rung, the best one in `reduction` trials continues."""

    reduction: int = Field(3, ge=2)
    first: int = Field(1, ge=1)
    """Evaluations before the first rung. Each later rung comes after `reduction` times as many evaluations as the rung
    before it."""

    def is_rung(self, evaluations: int) -> bool:
        """Whether trials are compared after this many evaluations."""
        rung = self.first
        while rung < evaluations:
            rung *= self.reduction
        return rung == evaluations

    def can_continue(self, value: float, values: Sequence[float]) -> bool:
        """Whether a trial with this value continues; `values` are those of all trials at the rung, in ascending order.

        Less is better. No trial is stopped before `reduction` trials, itself included, have reached the rung.
        """
        # Compared by value and not by rank, so that of equal trials all continue.
        return len(values) < self.reduction or value <= values[math.ceil(len(values) / self.reduction) - 1]


class Rungs:
    """The values of all trials at each rung, sorted, so that a decision does not walk over all trials."""

    def __init__(self, stopping: Halving, metric: str) -> None:
        """`metric` is what the trials are compared by."""
        self._stopping, self._metric = stopping, metric
        self._sign = 1.0 if direction(metric) == "minimize" else -1.0
        self._values: dict[tuple[Hashable, int], list[float]] = {}
        """A group of comparable trials, and the evaluations before a rung -> the values there; less is better."""

    def is_rung(self, evaluations: int) -> bool:
        """Whether trials are compared after this many evaluations."""
        return self._stopping.is_rung(evaluations)

    def add(self, group: Hashable, evaluations: int, metrics: Mapping[str, float]) -> None:
        """Add a trial's evaluation, which is its `evaluations`-th one. Trials of one group are comparable."""
        if self.is_rung(evaluations) and self._metric in metrics:
            insort(self._values.setdefault((group, evaluations), []), self._sign * metrics[self._metric])

    def remove(self, group: Hashable, history: Sequence[Mapping[str, float]]) -> None:
        """Remove all evaluations of a trial."""
        for evaluations, metrics in enumerate(history, start=1):
            if self.is_rung(evaluations) and self._metric in metrics:
                values = self._values[group, evaluations]
                del values[bisect_left(values, self._sign * metrics[self._metric])]

    def can_continue(self, group: Hashable, evaluations: int, metrics: Mapping[str, float]) -> bool:
        """Whether a trial continues after this evaluation, which `add` has received."""
        if not self.is_rung(evaluations) or self._metric not in metrics:
            return True
        values = self._values[group, evaluations]
        return self._stopping.can_continue(self._sign * metrics[self._metric], values)
