"""What a sweep tells of itself, whoever listens: the Tracker protocol, and the one that takes note of nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from kdray.evaluation.trial_record import TrialRecord

Ending: TypeAlias = Literal["finished", "failed", "interrupted"]


class Tracker(Protocol):
    """Takes note of a sweep. No call waits for a server but `end_sweep`, and that one not for long."""

    def start_sweep(self, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None = None) -> None:
        """Open the sweep's run, or go on with the one that is there, which had this id when it was last seen."""

    def sweep(
        self,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Add to the sweep's run."""

    def trial(self, record: TrialRecord, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Bring the trial's run up to its record; `params` are all its settings, searched or not."""

    def log_artifacts(self, folder: Path, path: str, trial: int | None = None) -> None:
        """Copy a folder to `path` among the artifacts of this trial's run, or of the sweep's."""

    def run_ids(self) -> dict[int | None, str]:
        """The runs known by now: trial number -> run id, and None -> the sweep's."""

    def page(self) -> str | None:
        """The part of an address, behind the server's, that shows this sweep's trials side by side."""

    def end_sweep(self, ending: Ending) -> None:
        """Close the sweep's run and wait until all is written, or until that takes too long."""


class NullTracker:
    """Takes note of nothing."""

    def start_sweep(self, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None = None) -> None:
        """See Tracker."""

    def sweep(
        self,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """See Tracker."""

    def trial(self, record: TrialRecord, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """See Tracker."""

    def log_artifacts(self, folder: Path, path: str, trial: int | None = None) -> None:
        """See Tracker."""

    def run_ids(self) -> dict[int | None, str]:
        """See Tracker."""
        return {}

    def page(self) -> str | None:
        """See Tracker."""
        return None

    def end_sweep(self, ending: Ending) -> None:
        """See Tracker."""
