"""The outputs of the reruns of a confirmation for the test rows, and the plain figures of each student.

`race` reads them after each round, `verdict` at the end, so that both see the same figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kdray.choice.reruns import Rerun, Role
from kdray.data.rows import Rows
from kdray.evaluation.quality import student_quality
from kdray.evaluation.statistics import CountMetric, metric_of_counts
from kdray.evaluation.trial_record import TrialRecord
from kdray.tasks.task import Outputs, Task


@dataclass(frozen=True)
class ConfirmationAnswers:
    """The outputs of the reruns of a confirmation for the test rows."""

    outputs: Mapping[Rerun, Outputs]
    failed: Mapping[Rerun, str]
    """Rerun -> why it failed."""
    teacher: Outputs
    rows: Rows
    """The test rows."""
    task: Task
    validation: Mapping[Rerun, Mapping[str, float]] = field(default_factory=dict)
    """Rerun -> its metrics on the validation rows at the end of its training."""

    def roles(self, trial: int) -> list[Role]:
        """The roles that have outputs for this trial."""
        return list(dict.fromkeys(run.role for run in self.outputs if run.trial == trial))

    def outputs_of(self, trial: int, role: Role) -> list[Outputs]:
        """The outputs with each seed, in the order of the seeds."""
        runs = [run for run in self.outputs if (run.trial, run.role) == (trial, role)]
        return [self.outputs[run] for run in sorted(runs, key=lambda run: run.seed)]

    def mean_metrics(self, trial: int, role: Role) -> dict[str, float]:
        """All metrics of a student, averaged over its seeds."""
        of_seeds = [student_quality(self.task, each, self.teacher, self.rows) for each in self.outputs_of(trial, role)]
        return {name: float(np.mean([each[name] for each in of_seeds])) for name in of_seeds[0]}

    def count_metric(self, name: str, outputs: Sequence[Outputs]) -> CountMetric:
        """The metric with this name, of one model with these outputs with each of its seeds."""
        return metric_of_counts(name, [self.task.counts(each, self.rows) for each in outputs])

    def test_record(self, record: TrialRecord) -> TrialRecord:
        """The record of a candidate with its metrics on the test rows in place of those of the search."""
        return replace(record, history=(*record.history, self.mean_metrics(record.number, "candidate")))
