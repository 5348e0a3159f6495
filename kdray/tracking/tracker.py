"""The Tracker protocol: what a sweep reports about itself. NullTracker is for a sweep without tracking."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from kdray.evaluation.trial_record import TrialRecord

Ending: TypeAlias = Literal["finished", "failed", "interrupted"]
"""How a session of a sweep ended."""
RunNumber: TypeAlias = int | None
"""Which run of a sweep: the number of a trial; None for the sweep's own run, the parent of the trials' runs."""


class Tracker(Protocol):
    """Records a sweep. Only `end_sweep` waits for a server, and only for a limited time."""

    def start_sweep(self, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None = None) -> None:
        """Open the sweep's run, or continue the existing one; `run_id` is the last known id of that run."""

    def sweep(
        self,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Add params, metrics and tags to the sweep's run."""

    def trial(self, record: TrialRecord, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Bring the trial's run up to date with its record; `params` are all settings, searched and fixed ones."""

    def log_artifacts(self, folder: Path, path: str, trial: int | None = None) -> None:
        """Copy a folder to `path` among the artifacts of this trial's run; None: of the sweep's run."""

    def run_ids(self, numbers: Collection[RunNumber] | None = None) -> dict[RunNumber, str]:
        """The ids that are known so far, of these runs; None: of all runs."""

    def page_path(self) -> str | None:
        """The path of the page that compares the sweep's trials, without the server's address; None while not known."""

    def end_sweep(self, ending: Ending) -> None:
        """Close the sweep's run and wait until everything is written, or until the waiting time is over."""


class NullTracker:
    """A tracker that records nothing."""

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

    def run_ids(self, numbers: Collection[RunNumber] | None = None) -> dict[RunNumber, str]:
        """See Tracker."""
        return {}

    def page_path(self) -> str | None:
        """See Tracker."""
        return None

    def end_sweep(self, ending: Ending) -> None:
        """See Tracker."""
