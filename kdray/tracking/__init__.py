"""A sweep in MLflow: what its runs ought to hold is spooled on disk and sent by a thread, or later by `kdray sync`.

`content` is what a run ought to hold, `spool` the file, `sender` brings a store up to it, `mlflow_tracker` and `sync`
decide when. `registry` is MLflow's model registry, `mlflow_model` what a version of a model holds.
"""

from kdray.tracking.ids import key_of, note_runs, sweep_run
from kdray.tracking.mlflow_model import write_mlflow_model
from kdray.tracking.mlflow_tracker import open_tracker
from kdray.tracking.origin import command_line, git_commit, origin, versions
from kdray.tracking.page import ui_command
from kdray.tracking.registry import Registry, Version
from kdray.tracking.settings import Tracking, default_uri, masked
from kdray.tracking.spool import Target
from kdray.tracking.sync import Synced, sync
from kdray.tracking.tracker import Ending, NullTracker, Tracker

__all__ = [
    "Ending",
    "NullTracker",
    "Registry",
    "Synced",
    "Target",
    "Tracker",
    "Tracking",
    "Version",
    "command_line",
    "default_uri",
    "git_commit",
    "key_of",
    "masked",
    "note_runs",
    "open_tracker",
    "origin",
    "sweep_run",
    "sync",
    "ui_command",
    "versions",
    "write_mlflow_model",
]
