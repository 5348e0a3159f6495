"""Early stopping: asynchronous successive halving among equals.

At each rung (a number of evaluations) a trial goes on only while it is among the best of those with the same costs and
as long a training that have reached this rung, so a shallow student is never stopped for being shallower. All that is
needed stands in the ledger: a verdict is the same before and after a restart. Li et al., A System for Massively
Parallel Hyperparameter Tuning, 2020.
"""

import math
from collections.abc import Iterable

from pydantic import Field

from kdray.evaluation.pareto import direction
from kdray.evaluation.trial_record import TrialRecord
from kdray.settings import Settings


class Halving(Settings):
    """At each rung the best one in `reduction` goes on."""

    reduction: int = Field(3, ge=2)
    first: int = Field(1, ge=1)
    """Evaluations before the first rung; the next come after `reduction` times as many."""

    def is_rung(self, evaluations: int) -> bool:
        """Whether trials are compared after this many evaluations."""
        rung = self.first
        while rung < evaluations:
            rung *= self.reduction
        return rung == evaluations

    def keeps(self, trial: TrialRecord, peers: Iterable[TrialRecord], metric: str) -> bool:
        """Whether the trial goes on after its last evaluation, compared with these peers.

        Nobody is stopped before as many as `reduction`, itself included, have reached the rung.
        """
        evaluations = len(trial.history)
        if not self.is_rung(evaluations) or metric not in trial.history[-1]:
            return True
        reached = [peer.history[evaluations - 1] for peer in peers if len(peer.history) >= evaluations]
        sign = 1.0 if direction(metric) == "minimize" else -1.0
        values = sorted(sign * metrics[metric] for metrics in [trial.history[-1], *reached] if metric in metrics)
        if len(values) < self.reduction:
            return True
        return sign * trial.history[-1][metric] <= values[math.ceil(len(values) / self.reduction) - 1]
