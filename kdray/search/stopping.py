"""Early stopping: asynchronous successive halving among comparable trials.

A rung is a number of evaluations. At each rung a trial continues only while it is among the best trials that have
reached the rung. Compared are only trials with the same costs and the same length of training, so that a shallow
student is never stopped because it is shallow. The decision depends only on what the ledger stores: it is the same
before and after a restart. Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020.
"""

import math
from collections.abc import Iterable

from pydantic import Field

from kdray.evaluation.pareto import direction
from kdray.evaluation.trial_record import TrialRecord
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

    def can_continue(self, trial: TrialRecord, peers: Iterable[TrialRecord], metric: str) -> bool:
        """Whether the trial continues after its last evaluation, compared by the metric with these other trials.

        No trial is stopped before `reduction` trials, itself included, have reached the rung.
        """
        evaluations = len(trial.history)
        if not self.is_rung(evaluations) or metric not in trial.history[-1]:
            return True
        reached = [peer.history[evaluations - 1] for peer in peers if len(peer.history) >= evaluations]
        sign = 1.0 if direction(metric) == "minimize" else -1.0
        values = sorted(sign * metrics[metric] for metrics in [trial.history[-1], *reached] if metric in metrics)
        if len(values) < self.reduction:
            return True
        # Compared by value and not by rank, so that of equal trials all continue.
        worst_to_continue = values[math.ceil(len(values) / self.reduction) - 1]
        return sign * trial.history[-1][metric] <= worst_to_continue
