"""What is known of a sweep, gathered for a report: from the values of the session that ends, or from the files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdray.choice.decision import Decision
from kdray.evaluation.costs import CostConditions
from kdray.evaluation.trial_record import TrialRecord
from kdray.report.figures import Figures
from kdray.report.screen import StageTimes
from kdray.search.claim import read_ledger, read_settings
from kdray.storage.files import read_json
from kdray.storage.paths import SweepPaths
from kdray.storage.records import read_record


@dataclass(frozen=True)
class SweepRecords:
    """What is known of a sweep beside its settings and its trials."""

    decision: Decision
    teacher: dict[str, float]
    """The teacher's metrics and costs."""
    conditions: str
    """How costs were measured."""
    times: StageTimes
    origin: dict[str, str]
    """The command, the commit and the versions of the last session."""

    @classmethod
    def read(cls, paths: SweepPaths) -> "SweepRecords":
        """Of a finished or running sweep."""
        conditions = read_record(CostConditions, paths.conditions)
        return cls(
            decision=read_record(Decision, paths.choice) or Decision(),
            teacher=read_json(paths.teacher_figures) if paths.teacher_figures.exists() else {},
            conditions=conditions.costs if conditions else "",
            times=read_record(StageTimes, paths.times) or StageTimes({}),
            origin=read_json(paths.origin) if paths.origin.exists() else {},
        )

    def figures(self, name: str, settings: dict[str, Any], records: Sequence[TrialRecord]) -> Figures:
        """The figures of the sweep of this name with these settings, as JSON."""
        return Figures(
            name=name,
            teacher=self.teacher,
            records=records,
            front=self.decision.front,
            chosen=self.decision.chosen,
            sentences=self.decision.sentences,
            controls=self.decision.controls,
            verdict=self.decision.confirmation,
            objectives=settings["search"]["objectives"],
            searched=list(settings["space"]),
            importances=self.decision.importances,
            times=self.times.root,
            origin=self.origin,
            conditions=self.conditions,
        )


def read_figures(paths: SweepPaths) -> Figures:
    """What is known of a finished or running sweep, from its files. Raises StorageError where there is none."""
    return SweepRecords.read(paths).figures(paths.name, read_settings(paths), read_ledger(paths).records())
