"""The figures of a sweep for its report: from the values of the session that ends, or from the files of the sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from kdray.choice.decision import Decision
from kdray.errors import StorageError, first_line
from kdray.evaluation.costs import CostConditions
from kdray.evaluation.trial_record import TrialRecord
from kdray.models.lineage import Lineage
from kdray.report.figures import Figures
from kdray.report.screen import StageTimes
from kdray.safe_text.escaping import printable
from kdray.search.claim import read_ledger, read_settings
from kdray.storage.paths import SweepPaths
from kdray.storage.records import FIGURES, read_record, read_value
from kdray.tasks.kinds import AnyTask
from kdray.tasks.task import Task

ORIGIN = TypeAdapter(dict[str, str])
"""The content of origin.json."""
TASK: TypeAdapter[Task] = TypeAdapter(AnyTask)
"""The task in sweep.json."""


@dataclass(frozen=True)
class SweepRecords:
    """The records of a sweep, without its settings and its trials."""

    decision: Decision
    teacher: dict[str, float]
    """The teacher's metrics and costs."""
    conditions: str
    """How and on which hardware the costs were measured, in words."""
    times: StageTimes
    origin: dict[str, str]
    """The command, the commit and the versions of the last session."""
    lineage: Lineage | None = None
    """What the students were made from; None before the teacher is known."""

    @classmethod
    def read(cls, paths: SweepPaths) -> "SweepRecords":
        """Read the records of a finished or running sweep. A record that does not exist yet is empty."""
        conditions = read_record(CostConditions, paths.conditions)
        return cls(
            decision=read_record(Decision, paths.choice) or Decision(),
            teacher=read_value(FIGURES, paths.teacher_figures) if paths.teacher_figures.exists() else {},
            conditions=conditions.costs if conditions else "",
            times=read_record(StageTimes, paths.times) or StageTimes({}),
            origin=read_value(ORIGIN, paths.origin) if paths.origin.exists() else {},
            lineage=read_record(Lineage, paths.lineage),
        )

    def figures(self, name: str, settings: dict[str, Any], records: Sequence[TrialRecord]) -> Figures:
        """The figures of a sweep with this name, these settings (JSON values) and these trials."""
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
            task=TASK.validate_python(settings.get("task", {})),
            searched=list(settings["space"]),
            importances=self.decision.importances,
            times=self.times.root,
            origin=self.origin,
            conditions=self.conditions,
            by_label=self.decision.by_label or {},
            lineage=self.lineage,
        )


def unreadable_settings(paths: SweepPaths, error: Exception) -> StorageError:
    """The error for a sweep.json that has settings which no sweep of this version has."""
    return StorageError(
        f"{paths.settings}: does not hold the settings of a sweep that this version can read "
        f"({printable(first_line(error), 300)}). Restore it, or start over with --fresh."
    )


def read_figures(paths: SweepPaths) -> Figures:
    """The figures of a finished or running sweep, from its files. Raises StorageError if there is no sweep."""
    settings, records, trials = read_settings(paths), SweepRecords.read(paths), read_ledger(paths).records()
    try:
        return records.figures(paths.name, settings, trials)
    except (ValueError, TypeError) as error:  # of settings that no task has
        raise unreadable_settings(paths, error) from error
