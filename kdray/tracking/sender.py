"""Brings the runs of one sweep in an MLflow store up to their desired content.

A run is identified by the sweep's key, a tag that `create_run` sets, and never by an id in the memory of a process: a
request whose answer was lost may have created a run all the same. So after every failure the runs are searched again,
and duplicates are deleted. A metric value that is sent again with its old time stays one point. When to try again, and
for how long, is decided in `mlflow_tracker` and `sync`.
"""

import itertools
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, Run, RunTag, ViewType

from kdray.errors import StorageError
from kdray.evaluation.trial_record import TrialRecord
from kdray.safe_text.secrets import mask_secrets
from kdray.storage.mirror import fetch
from kdray.storage.names import check_links, check_regular_files
from kdray.storage.paths import SweepPaths
from kdray.storage.sqlite_files import check_sqlite_address
from kdray.tracking.client_process import ClientProcess
from kdray.tracking.content import Point, RunContent, TrackedRun
from kdray.tracking.database import make_database
from kdray.tracking.ids import TrackedSweep
from kdray.tracking.page import columns_of, shared_view
from kdray.tracking.settings import Tracking, default_uri
from kdray.tracking.tracker import RunNumber

log = logging.getLogger(__name__)
T = TypeVar("T")

# In one log_batch call. A server accepts 1,000 entries, of these 100 params and 100 tags, and 1 MB.
_METRICS, _PARAMS, _TAGS = 800, 100, 25
_MAX_PARAMS_LENGTH = 300_000
"""The most characters of all params in one call; 25 tags have at most 200,000."""
_MAX_REASON_LENGTH = 200  # characters


@dataclass
class SentCounts:
    """How much a store has received."""

    runs: set[RunNumber] = field(default_factory=set)
    metrics: int = 0
    folders: int = 0
    left_out: list[str] = field(default_factory=list)
    """For each folder of artifacts that was not sent: the folder and the reason, in words."""


class Sender:
    """Sends the differences. Every method may raise any error that a store raises, and may then be called again."""

    def __init__(
        self,
        tracking: Tracking,
        paths: SweepPaths,
        sweep: TrackedSweep,
        runs: dict[RunNumber, TrackedRun],
        lock: AbstractContextManager[Any],
        process_log: Path | None = None,
    ) -> None:
        """`lock` guards `runs`, which other threads change. `runs` must have the sweep's own run before `send`.

        With `process_log` the client has a process of its own, which writes its messages into this file, until `close`.
        Raises StorageError if the database of the storage, or a file beside it, leads to another place.
        """
        check_links(paths.tracking_database, paths.storage)
        check_sqlite_address(tracking.uri_in(paths))
        self.uri = tracking.uri_in(paths)
        self.sent = SentCounts()
        self.is_connected = False
        self.experiment_id: str | None = None
        self.last_success_s = 0.0
        """When the store last received something (time.monotonic)."""
        self.is_uploading = False
        """Whether files are being sent. That may take longer than `patience_s`; a dead store ends it by a timeout."""
        self._tracking, self._paths, self._sweep = tracking, paths, sweep
        self._artifacts = tracking.artifacts_in(paths)
        self._scratch = paths.spool.with_name(".database")
        self._own_database = paths.tracking_database if self.uri == default_uri(paths) else None
        self._runs, self._lock = runs, lock
        self._client: Any = None
        self._process = None if process_log is None else ClientProcess(self.uri, process_log)
        self._found: dict[RunNumber, list[Run]] = {}
        """Runs in the store that were found at the last connection and are not in use yet."""
        self._may_have_duplicates = False
        self._columns: tuple[str, ...] = ()
        self._columns_written = 0

    def connect(self) -> None:
        """Find the experiment and the sweep's runs in it. Call it before the first `send` and after each failure."""
        limit_requests(self._tracking.timeout_s)
        self.is_connected = False
        if self._own_database:
            make_database(self._own_database, self._scratch)
        self._client = self._client or self._process or MlflowClient(tracking_uri=self.uri)
        experiment = self._open_experiment()
        self.experiment_id = experiment.experiment_id
        self._found = self._search_runs()
        with self._lock:
            for run in self._runs.values():
                run.is_in_store = False
        self.is_connected = True

    def close(self) -> None:
        """End the process of the client, if it has one; a request that is under way is cut off."""
        if self._process is not None:
            self._process.close()

    def send(self, run: TrackedRun) -> None:
        """Create the run if the store does not have it, and send the content that it lacks."""
        sweep = self._runs[None]
        if not sweep.is_in_store:
            self._open_run(sweep)
        if not run.is_in_store:
            self._open_run(run)
        with self._lock:
            if run.number is not None:
                run.desired.tags["mlflow.parentRunId"] = str(sweep.run_id)
            unsent = run.unsent()
        for metrics, params, tags in _batches(unsent):
            self._client.log_batch(run.run_id, metrics, params, tags)
            self._count(run, len(metrics))
        for path in unsent.artifacts:
            self._upload(run, unsent, path)
        # The status is last, so that a run that is closed in the store is complete.
        if unsent.status:
            _set_status(self._client, str(run.run_id), unsent.status, run.desired.ended)
            self._count(run)
        with self._lock:
            run.stored.add(unsent)

    def delete_duplicates(self) -> None:
        """Delete runs that were created by requests without an answer. Call it when everything is sent."""
        if self._may_have_duplicates:
            for number, found in self._search_runs().items():
                self._keep_one(found, self._runs[number].run_id if number in self._runs else None)
            self._may_have_duplicates = False

    def add_columns(self, record: TrialRecord) -> None:
        """Let the sweep's page have the columns that this trial has values for."""
        # A trial has fewer metrics before its first evaluation, so the longest tuple is the complete one.
        self._columns = max(columns_of(record, self._sweep.quality), self._columns, key=len)

    def write_page(self) -> None:
        """Write the view of the sweep's page into the store, if it has new columns."""
        columns = self._columns
        if len(columns) > self._columns_written:
            view = shared_view(self._paths.name, columns, self._sweep.quality)
            self._client.set_experiment_tag(self.experiment_id, *view)
            self._columns_written = len(columns)

    def _open_experiment(self) -> Experiment:
        """The experiment; it is created if it is missing, and restored if it was deleted."""
        name = self._tracking.experiment
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI shows training, not prompts
            place = f"{self._artifacts}/{quote(name)}" if self._artifacts else None
            return self._client.get_experiment(self._client.create_experiment(name, place, kind))
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        return experiment

    def _search_runs(self) -> dict[RunNumber, list[Run]]:
        """The runs in the store that have the sweep's key."""
        runs: dict[RunNumber, list[Run]] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id],
                f"tags.`kdray.key` = '{self._sweep.key}'",
                ViewType.ACTIVE_ONLY,
                1000,
                page_token=token,
            )
            for run in page:
                trial = run.data.tags.get("kdray.trial")
                runs.setdefault(None if trial is None else int(trial), []).append(run)
            if not (token := page.token):
                return runs

    def _open_run(self, run: TrackedRun) -> None:
        """Use the run that the store has, or create one, and note what it holds."""
        found = self._keep_one(self._found.pop(run.number, []), run.run_id) or self._create_run(run)
        with self._lock:
            run.run_id, run.is_in_store = found.info.run_id, True
            run.latest = {
                metric.key: (metric.step, Point(metric.value, metric.timestamp)) for metric in found.data._metric_objs
            }
            run.stored = RunContent(
                name=found.info.run_name,
                started=found.info.start_time / 1000,
                ended=0.0,
                status=found.info.status,
                params=dict(found.data.params),
                tags=dict(found.data.tags),
                artifacts=run.stored.artifacts,  # a search does not list files, so this process remembers them
            )

    def _keep_one(self, runs: list[Run], known_id: str | None) -> Run | None:
        """Keep the run with the known id, or else the first one, and delete the others; None if there is no run."""
        if not runs:
            return None
        remaining = next((run for run in runs if run.info.run_id == known_id), runs[0])
        for run in runs:
            if run is not remaining:
                self._client.delete_run(run.info.run_id)
        return remaining

    def _create_run(self, run: TrackedRun) -> Run:
        tags = {"kdray.key": self._sweep.key, "kdray.sweep": self._paths.name}
        if run.number is not None:
            tags |= {"kdray.trial": str(run.number), "mlflow.parentRunId": str(self._runs[None].run_id)}
        with self._lock:
            run.stored = RunContent()  # the store may have had the run, and a user deleted it: send everything again
        try:
            created = self._client.create_run(
                self.experiment_id, int(run.desired.started * 1000), tags, run.desired.name
            )
        except Exception:
            self._may_have_duplicates = True
            raise
        self._count(run)
        return created

    def _upload(self, run: TrackedRun, unsent: RunContent, path: str) -> None:
        folder = fetch(unsent.artifacts[path])
        if reason := self._reason_against(folder, str(run.run_id)):
            log.warning("%s: %s; MLflow's run %r lacks it.", folder, reason, run.desired.name)
            self.sent.left_out.append(f"{folder}: {reason}")
            return
        self.is_uploading = True
        try:
            self._client.log_artifacts(run.run_id, str(folder), path)
        finally:
            self.is_uploading = False
        with self._lock:
            run.stored.artifacts[path] = folder
        self.sent.folders += 1
        self._count(run)

    def _reason_against(self, folder: Path, run_id: str) -> str | None:
        """Why this folder is not sent, in words; None if it is."""
        if not folder.is_dir():
            return "this folder does not exist any more"
        try:
            check_regular_files(folder, self._paths.root)
        except StorageError as error:
            return str(error)
        place = str(self._client.get_run(run_id).info.artifact_uri)
        if not self._tracking.may_write_to(place, self._paths):
            return (
                f"the database {self._paths.tracking_database} names {place} for it, which is, or leads, outside "
                "of the storage"
            )
        return None

    def _count(self, run: TrackedRun, metrics: int = 0) -> None:
        """Note that the store has received something of this run."""
        self.last_success_s = time.monotonic()
        self.sent.runs.add(run.number)
        self.sent.metrics += metrics


def limit_requests(timeout_s: int) -> None:
    """Let MLflow try each request once and wait at most this long; the caller tries again.

    MLflow reads these limits from the environment only. By default it tries for minutes, and it may repeat a request
    that has already created a run.
    """
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(timeout_s)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # otherwise two lines for every run that ends


def describe_error(error: Exception, timeout_s: int) -> str:
    """The cause of a store's error in a few words, without secrets. `timeout_s` is the limit of one request."""
    text = mask_secrets(str(error) or type(error).__name__)
    if answer := re.search(r"too many (\d+) error responses", text):
        return f"it answers HTTP {answer[1]}"
    if "timed out" in text:
        return f"no answer within {timeout_s} s"
    if "Connection refused" in text:
        return "the connection is refused"
    if "Connection aborted" in text or "RemoteDisconnected" in text:
        return "the connection is dropped"
    line = text.splitlines()[0]
    return line if len(line) <= _MAX_REASON_LENGTH else f"{line[:_MAX_REASON_LENGTH]} …"


def _batches(content: RunContent) -> Iterator[tuple[Sequence[Metric], Sequence[Param], Sequence[RunTag]]]:
    """The metrics, params and tags in parts of a size that one log_batch call may have."""
    points = [Metric(name, point.value, point.time_ms, step) for (name, step), point in content.metrics.items()]
    metrics = _parts(points, _METRICS)
    values = [Param(*item) for item in content.params.items()]
    # Each call has a fixed cost of 6 ms with SQLite, so short params go in one call: 22 instead of 30 ms a run.
    is_long = sum(len(param.key) + len(param.value) for param in values) > _MAX_PARAMS_LENGTH
    params = _parts(values, _PARAMS // 2 if is_long else _PARAMS)
    tags = _parts([RunTag(*item) for item in content.tags.items()], _TAGS)
    return itertools.zip_longest(metrics, params, tags, fillvalue=())


def _parts(values: list[T], size: int) -> Iterator[list[T]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _set_status(client: MlflowClient, run_id: str, status: str, ended: float) -> None:
    """Set the status; `ended` is the end time in seconds since the epoch, 0: now."""
    if status == "RUNNING":
        client.update_run(run_id, status)
    else:
        client.set_terminated(run_id, status, int((ended or time.time()) * 1000))
