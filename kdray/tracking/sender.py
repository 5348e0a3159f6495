"""Brings the runs of one sweep in an MLflow store up to what they ought to hold.

A run is known by the sweep's key, a tag it is created with, and never by what a process remembers: a request whose
answer was lost may have made a run all the same. So after every failure the runs are looked up again, and what is
there twice is deleted. A metric sent again with its old time is one point. When to try, and for how long, is decided
elsewhere.
"""

import itertools
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, Run, RunTag, ViewType

from kdray.evaluation.trial_record import TrialRecord
from kdray.storage.mirror import fetch
from kdray.storage.paths import SweepPaths
from kdray.tracking.content import Point, RunContent, TrackedRun
from kdray.tracking.database import make_database
from kdray.tracking.page import columns_of, shared_view
from kdray.tracking.settings import Tracking, default_uri, mask_secrets

log = logging.getLogger(__name__)
T = TypeVar("T")

_METRICS, _PARAMS, _TAGS = 800, 50, 25  # in one call; a server takes 1,000 entries and 1 MB
_LONGEST_REASON = 200  # characters


@dataclass
class SentCounts:
    """What a store has taken."""

    runs: set[int | None] = field(default_factory=set)
    metrics: int = 0
    folders: int = 0
    missing: list[str] = field(default_factory=list)
    """Folders of artifacts that were not there any more."""


class Sender:
    """Sends the differences. Every method may raise whatever a store may raise, and may then be called again."""

    def __init__(
        self,
        tracking: Tracking,
        paths: SweepPaths,
        key: str,
        runs: dict[int | None, TrackedRun],
        lock: AbstractContextManager[Any],
    ) -> None:
        """`lock` guards `runs`, to which others add; the run None must be among them before the first is sent."""
        self.uri = tracking.uri_in(paths)
        self.sent = SentCounts()
        self.connected = False
        self.experiment_id: str | None = None
        self.answered = 0.0
        """When the store last took something (time.monotonic)."""
        self.uploading = False
        """Files are under way: that may take long, and a store that says nothing ends it by itself."""
        self._tracking, self._sweep, self._key = tracking, paths.name, key
        self._artifacts = tracking.artifacts_in(paths)
        self._workshop = paths.spool.with_name(".database")
        self._own_database = paths.tracking_database if self.uri == default_uri(paths) else None
        self._runs, self._lock = runs, lock
        self._client: Any = None
        self._there: dict[int | None, list[Run]] = {}
        self._in_doubt = False
        self._columns: tuple[str, ...] = ()
        self._columns_written = 0

    def connect(self) -> None:
        """Find the experiment, and those of the sweep's runs that are in it: before the first `send`, and after each
        failure."""
        limit_requests(self._tracking.timeout_s)
        self.connected = False
        if self._own_database:
            make_database(self._own_database, self._workshop)
        self._client = self._client or MlflowClient(tracking_uri=self.uri)
        experiment = self._experiment()
        self.experiment_id = experiment.experiment_id
        self._there = self._found()
        with self._lock:
            for run in self._runs.values():
                run.found = False
        self.connected = True

    def send(self, run: TrackedRun) -> None:
        """Create the run where it is not there, and send what it lacks."""
        sweep = self._runs[None]
        if not sweep.found:
            self._begin(sweep)
        if not run.found:
            self._begin(run)
        with self._lock:
            if run.number is not None:
                run.wanted.tags["mlflow.parentRunId"] = str(sweep.run_id)
            todo = run.unsent()
        for metrics, params, tags in _batches(todo):
            self._client.log_batch(run.run_id, metrics, params, tags)
            self._taken(run, len(metrics))
        for path in todo.artifacts:
            self._upload(run, todo, path)
        if todo.status:
            _set_status(self._client, str(run.run_id), todo.status, run.wanted.ended)
            self._taken(run)
        with self._lock:
            run.sent.add(todo)

    def settle(self) -> None:
        """Delete what a request that seemed lost has made after all. To be called when everything is sent."""
        if self._in_doubt:
            for number, there in self._found().items():
                self._keep_one(there, self._runs[number].run_id if number in self._runs else None)
            self._in_doubt = False

    def show(self, record: TrialRecord) -> None:
        """Let the sweep's page have a column for all that this trial has."""
        self._columns = max(columns_of(record), self._columns, key=len)

    def write_page(self) -> None:
        """Give the sweep's page its columns."""
        columns = self._columns
        if len(columns) > self._columns_written:
            self._client.set_experiment_tag(self.experiment_id, *shared_view(self._sweep, columns))
            self._columns_written = len(columns)

    def _experiment(self) -> Experiment:
        name = self._tracking.experiment
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI shows training, not prompts
            place = f"{self._artifacts}/{quote(name)}" if self._artifacts else None
            return self._client.get_experiment(self._client.create_experiment(name, place, kind))
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        return experiment

    def _found(self) -> dict[int | None, list[Run]]:
        """The runs that bear the sweep's key, by trial number; None for the sweep's own."""
        there: dict[int | None, list[Run]] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id], f"tags.`kdray.key` = '{self._key}'", ViewType.ACTIVE_ONLY, 1000, page_token=token
            )
            for run in page:
                trial = run.data.tags.get("kdray.trial")
                there.setdefault(None if trial is None else int(trial), []).append(run)
            if not (token := page.token):
                return there

    def _begin(self, run: TrackedRun) -> None:
        """Go on with the run that is there, or create it."""
        there = self._keep_one(self._there.pop(run.number, []), run.run_id) or self._create(run)
        with self._lock:
            run.run_id, run.found = there.info.run_id, True
            run.latest = {m.key: (m.step, Point(m.value, m.timestamp)) for m in there.data._metric_objs}
            run.sent = RunContent(
                there.info.run_name,
                there.info.start_time / 1000,
                0.0,
                there.info.status,
                dict(there.data.params),
                dict(there.data.tags),
                artifacts=run.sent.artifacts,
            )

    def _keep_one(self, there: list[Run], known: str | None) -> Run | None:
        """Of several runs for one trial: the one that the ledger knows, or the first; the others are deleted."""
        if not there:
            return None
        kept = next((run for run in there if run.info.run_id == known), there[0])
        for run in there:
            if run is not kept:
                self._client.delete_run(run.info.run_id)
        return kept

    def _create(self, run: TrackedRun) -> Run:
        tags = {"kdray.key": self._key, "kdray.sweep": self._sweep}
        if run.number is not None:
            tags |= {"kdray.trial": str(run.number), "mlflow.parentRunId": str(self._runs[None].run_id)}
        with self._lock:
            run.sent = RunContent()  # of a run that was deleted, all is to be sent again
        try:
            created = self._client.create_run(self.experiment_id, int(run.wanted.started * 1000), tags, run.wanted.name)
        except Exception:
            self._in_doubt = True
            raise
        self._taken(run)
        return created

    def _upload(self, run: TrackedRun, todo: RunContent, path: str) -> None:
        folder = fetch(todo.artifacts[path])
        if not folder.is_dir():
            log.warning("%s: is not there any more; MLflow's run %r goes without it.", folder, run.wanted.name)
            self.sent.missing.append(str(folder))
            return
        self.uploading = True
        try:
            self._client.log_artifacts(run.run_id, str(folder), path)
        finally:
            self.uploading = False
        with self._lock:
            run.sent.artifacts[path] = folder
        self.sent.folders += 1
        self._taken(run)

    def _taken(self, run: TrackedRun, metrics: int = 0) -> None:
        self.answered = time.monotonic()
        self.sent.runs.add(run.number)
        self.sent.metrics += metrics


def limit_requests(timeout_s: int) -> None:
    """Let MLflow try each request once, for so long: it has no other way to be told. Who sends tries again."""
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(timeout_s)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"  # else it would send twice what may have arrived
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # two lines for every run that ends


def describe_error(error: Exception, timeout_s: int) -> str:
    """What went wrong, in a few words, where one request may take so long."""
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
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]} …"


def _batches(content: RunContent) -> Iterator[tuple[Sequence[Metric], Sequence[Param], Sequence[RunTag]]]:
    points = [Metric(name, point.value, point.at, step) for (name, step), point in content.metrics.items()]
    metrics = _parts(points, _METRICS)
    params = _parts([Param(*item) for item in content.params.items()], _PARAMS)
    tags = _parts([RunTag(*item) for item in content.tags.items()], _TAGS)
    return itertools.zip_longest(metrics, params, tags, fillvalue=())


def _parts(values: list[T], size: int) -> Iterator[list[T]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _set_status(client: MlflowClient, run_id: str, status: str, ended: float) -> None:
    if status == "RUNNING":
        client.update_run(run_id, status)
    else:
        client.set_terminated(run_id, status, int((ended or time.time()) * 1000))
