"""Counts: how much each row adds to some sums, and the metrics that are functions of these sums.

A metric of many rows is seldom the mean of a metric of each row, but most are functions of counts: accuracy of the
number of right answers, F1 of the numbers of right, given and expected ones. Counts of rows can be added on any number
of workers, and drawn again by a bootstrap, without the outputs that they were made of.

Shapes: N rows, K counts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from scipy import sparse

MetricOfCounts: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""A function of summed counts (... x K) that gives values (...)."""


@dataclass(frozen=True)
class Metric:
    """A metric of a task."""

    name: str
    direction: Literal["maximize", "minimize"] = "maximize"
    heading: str = ""
    """What a table calls it; empty: the words of `name`."""
    noun: str = ""
    """What a sentence calls it, where that is not the heading."""
    hub: str = ""
    """Its name on the Hugging Face hub; empty: the hub has none."""
    is_share: bool = True
    """Whether 1 is its best value, as of shares and correlations: people give their differences in points of 0.01.
    False for a value in the units of the data."""

    def is_as_good(self, value: float, other: float) -> bool:
        """Whether a value is at least as good as another one; False for nan."""
        return value >= other if self.direction == "maximize" else value <= other


@dataclass(frozen=True)
class Counts:
    """The counts of the rows of one model."""

    counts_NxK: sparse.csr_array
    metrics: Mapping[str, MetricOfCounts]
    """Name of a metric -> its value for summed counts."""

    def sums(self) -> np.ndarray:
        """The counts of all rows together (K, float64)."""
        return np.asarray(self.counts_NxK.sum(axis=0), np.float64)

    def values(self) -> dict[str, float]:
        """The metrics of all rows."""
        sums_K = self.sums()
        return {name: float(metric(sums_K)) for name, metric in self.metrics.items()}
