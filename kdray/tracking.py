"""A sweep in MLflow: one parent run, one nested run a trial, written by a thread so that no server holds up training.

The caller only says what a run ought to hold; the thread compares that with what it knows to be there and sends the
difference, in batches. So saying the same twice sends nothing twice, and what a server did not take is sent again with
the next change. What is still unsent when the sweep ends is said, and is in the ledger. What a trial is worth and what
happens to it is decided elsewhere; this module reads `TrialRecord`s.
"""

import getpass
import itertools
import json
import logging
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypeVar
from urllib.parse import quote, urlparse

from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from pydantic import field_validator

from kdray.paths import StoragePaths
from kdray.record import State, TrialRecord
from kdray.settings import Settings
from kdray.wording import in_order

log = logging.getLogger(__name__)

Ending: TypeAlias = Literal["finished", "failed", "interrupted"]
T = TypeVar("T")

_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
_STATUS: dict[State | Ending, str] = {
    "running": "RUNNING",
    "completed": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
    "finished": "FINISHED",
    "interrupted": "KILLED",
}
_LONGEST_PARAM = 6_000  # characters; MLflow cuts longer values and says nothing
_LONGEST_TAG = 8_000
_METRICS, _PARAMS, _TAGS = 800, 50, 25  # in one call; a server takes 1,000 entries and 1 MB
_PAUSE_S = 0.3  # changes within it travel together
_LONGEST_PAUSE_S = 30.0  # between two tries at a server that does not answer
_SHOWN_METRICS = ("accuracy", "retention", "latency_ms", "speedup", "parameters")


class Tracking(Settings):
    """Where the sweep's runs go: by default a SQLite file and a folder in the storage."""

    enabled: bool = True
    uri: str | None = None
    experiment: str = "kdray"

    @field_validator("uri")
    @classmethod
    def _known_scheme(cls, uri: str | None) -> str | None:
        scheme = urlparse(uri or "sqlite:").scheme.split("+")[0]
        if scheme not in _SCHEMES:
            allowed = ", ".join(f"{name}://" for name in _SCHEMES)
            raise ValueError(
                f"MLflow has no store at {uri!r}; allowed: {allowed} (a file: sqlite:////folder/mlflow.db)."
            )
        return uri

    def open(self, storage: StoragePaths) -> "Tracker":
        """The tracker for a sweep in this storage; it connects to nothing until the sweep is started."""
        if not self.enabled:
            return NullTracker()
        if self.uri:
            return MlflowTracker(self.uri, self.experiment)
        return MlflowTracker(default_uri(storage), self.experiment, storage.tracking_artifacts.as_uri())


class Tracker(Protocol):
    """Takes note of a sweep. No call waits for a server but `end_sweep`, and that one not for long."""

    def start_sweep(
        self, name: str, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None = None
    ) -> None:
        """Open the sweep's run, or go on with the one of this id."""

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

    def start_sweep(
        self, name: str, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None = None
    ) -> None:
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


@dataclass
class _Content:
    """What a run holds. A metric is known by its name and step, a folder of artifacts by its path in the run."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[tuple[str, int], Metric] = field(default_factory=dict)
    artifacts: dict[str, Path] = field(default_factory=dict)
    status: str = "RUNNING"

    def add(self, other: "_Content") -> None:
        self.params |= other.params
        self.tags |= other.tags
        self.metrics |= other.metrics
        self.artifacts |= other.artifacts
        self.status = other.status


@dataclass
class _Run:
    """One MLflow run: what it ought to hold, and what it is known to hold."""

    name: str
    number: int | None = None
    started: float = 0.0
    ended: float = 0.0
    wanted: _Content = field(default_factory=_Content)
    sent: _Content = field(default_factory=_Content)
    seen_steps: dict[str, int] = field(default_factory=dict)
    """Of a run that was there before this process: the last step of each metric."""
    run_id: str | None = None

    def unsent(self) -> _Content:
        """What the run ought to hold and does not. A param cannot change: a new value goes to a tag."""
        wanted, sent = self.wanted, self.sent
        changed = {f"changed.{k}": v for k, v in wanted.params.items() if sent.params.get(k, v) != v}
        return _Content(
            {k: v for k, v in wanted.params.items() if k not in sent.params},
            {k: v for k, v in {**wanted.tags, **changed}.items() if sent.tags.get(k) != v},
            {k: v for k, v in wanted.metrics.items() if k not in sent.metrics and k[1] > self.seen_steps.get(k[0], -1)},
            {k: v for k, v in wanted.artifacts.items() if k not in sent.artifacts},
            wanted.status,
        )

    def adopt(self, run: Run) -> None:
        """Go on with a run that another process began."""
        self.run_id = run.info.run_id
        self.seen_steps = {metric.key: metric.step for metric in run.data._metric_objs}
        self.sent = _Content(dict(run.data.params), dict(run.data.tags), status=run.info.status)


class MlflowTracker:
    """Keeps the runs of one sweep in an MLflow store as they ought to be."""

    def __init__(self, uri: str, experiment: str, artifacts: str | None = None, patience_s: float = 30.0) -> None:
        self.uri = uri
        self.experiment = experiment
        self._artifacts = artifacts
        self._patience_s = patience_s
        self._runs: dict[int | None, _Run] = {}
        self._waiting: dict[int | None, None] = {}  # an ordered set: the runs with something unsent
        self._sending: list[int | None] = []
        self._last_sent = 0.0
        self._changed = threading.Condition()
        self._closing = False
        self._given_up = False
        self._failure: str | None = None
        self._experiment_id: str | None = None
        self._resumed: str | None = None
        self._children: dict[int, Run] = {}
        self._columns: tuple[str, ...] = ()
        self._columns_written = 0
        self._thread = threading.Thread(target=self._write, name="kdray-tracking", daemon=True)

    def start_sweep(
        self, name: str, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None = None
    ) -> None:
        """Open the sweep's run, or go on with the one of this id."""
        self._resumed = run_id
        with self._changed:
            self._runs[None] = _Run(name, started=time.time())
        self.sweep(params=params, tags={**_source_tags(), **tags, "kdray.sweep": name, "kdray.status": "running"})
        self._thread.start()

    def sweep(
        self,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Add to the sweep's run."""
        now = int(time.time() * 1000)
        self._want(None, _Content(_params(params or {}), _tags(tags or {}), _metrics(metrics or {}, now, 0)))

    def trial(self, record: TrialRecord, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Bring the trial's run up to its record; `params` are all its settings, searched or not."""
        with self._changed:
            sweep = self._runs[None].name
            run = self._runs.setdefault(record.number, _Run(trial_name(record), record.number, record.started))
            run.ended = record.ended
        own = {
            "kdray.sweep": sweep,
            "kdray.trial": str(record.number),
            "kdray.status": record.state,
            "kdray.attempts": str(record.attempts),
            **({"kdray.error": record.error} if record.error else {}),
        }
        settings = _params({**params, **record.params})
        self._show(record)
        self._want(
            record.number,
            _Content(settings, _tags({**tags, **own}), _history(record), status=_STATUS[record.state]),
        )

    def log_artifacts(self, folder: Path, path: str, trial: int | None = None) -> None:
        """Copy a folder to `path` among the artifacts of this trial's run, or of the sweep's."""
        with self._changed:
            status = self._runs[trial].wanted.status
        self._want(trial, _Content(artifacts={path: folder}, status=status))

    def run_ids(self) -> dict[int | None, str]:
        """The runs known by now: trial number -> run id, and None -> the sweep's."""
        with self._changed:
            return {number: run.run_id for number, run in self._runs.items() if run.run_id}

    def page(self) -> str | None:
        """The part of an address, behind the server's, that shows this sweep's trials side by side."""
        if self._experiment_id is None:
            return None
        return page_of(self._experiment_id, self._runs[None].name)

    def end_sweep(self, ending: Ending) -> None:
        """Close the sweep's run, and those still running, and wait while the store takes what is unsent."""
        with self._changed:
            running = [run for run in self._runs.values() if run.wanted.status == "RUNNING"]
            for run in running:
                run.ended = time.time()
                run.wanted.status = _STATUS[ending] if run.number is None else "KILLED"
                self._waiting[run.number] = None
            self._runs[None].wanted.tags["kdray.status"] = ending
            self._closing = True
            self._changed.notify_all()
        asked = time.monotonic()
        while self._thread.is_alive() and time.monotonic() - max(asked, self._last_sent) < self._patience_s:
            self._thread.join(0.1)
        with self._changed:
            unsent = {*self._waiting, *self._sending}
            self._given_up = True  # what the thread still meets is of no use to anyone
        if unsent:
            reason = self._failure or "no answer in time"
            log.warning(
                "MLflow at %s did not take the last changes of %d of %d runs (%s); the ledger has them.",
                _masked(self.uri), len(unsent), len(self._runs), reason,
            )  # fmt: skip

    # what the caller wants

    def _want(self, number: int | None, content: _Content) -> None:
        with self._changed:
            self._runs[number].wanted.add(content)
            self._waiting[number] = None
            self._changed.notify_all()

    def _show(self, record: TrialRecord) -> None:
        """Let the sweep's page have a column for each searched setting and each number worth comparing."""
        shown = [name for name in _SHOWN_METRICS if name in record.metrics]
        columns = (
            *_column("params", in_order(record.params)),
            *_column("metrics", shown),
            *_column("tags", ["kdray.status"]),
        )
        with self._changed:
            self._columns = max(columns, self._columns, key=len)

    # what the thread does

    def _write(self) -> None:
        failures = 0
        client: MlflowClient | None = None
        while numbers := self._next():
            try:
                client = client or self._connect()
                while numbers:
                    self._send(client, self._runs[numbers[0]])
                    del numbers[0]
                    self._last_sent = time.monotonic()
                self._write_page(client)
                failures = 0
            except Exception as error:  # whatever a store may raise, the sweep goes on without it
                self._say_once(error)
                failures += 1
                with self._changed:  # the one that failed comes last: it may be at fault itself
                    self._waiting |= dict.fromkeys([*numbers[1:], *numbers[:1]])
                    numbers.clear()
                    if self._closing and failures > 1:
                        return
                    self._changed.wait_for(lambda: self._closing, min(_PAUSE_S * 3**failures, _LONGEST_PAUSE_S))

    def _next(self) -> list[int | None]:
        """The runs with something unsent, once there are any; none when the sweep has ended and all is sent."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closing)
            self._changed.wait_for(lambda: self._closing, _PAUSE_S)
            self._sending = list(self._waiting)
            self._waiting.clear()
            return self._sending

    def _connect(self) -> MlflowClient:
        _answer_soon()
        client = MlflowClient(tracking_uri=self.uri)
        experiment = self._the_experiment(client)
        self._experiment_id = experiment.experiment_id
        if self._resumed:
            self._adopt(client, self._resumed)
        self._send(client, self._runs[None])
        return client

    def _the_experiment(self, client: MlflowClient) -> Experiment:
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI shows training, not prompts
            place = f"{self._artifacts}/{quote(self.experiment)}" if self._artifacts else None
            return client.get_experiment(client.create_experiment(self.experiment, place, kind))
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        return experiment

    def _adopt(self, client: MlflowClient, run_id: str) -> None:
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return  # the sweep was tracked elsewhere before
        if run.info.lifecycle_stage == "deleted" or run.info.experiment_id != self._experiment_id:
            return
        with self._changed:
            self._runs[None].adopt(run)
        for child in _children(client, run):
            self._children.setdefault(int(child.data.tags["kdray.trial"]), child)

    def _send(self, client: MlflowClient, run: _Run) -> None:
        if run.run_id is None:
            self._begin(client, run)
        assert run.run_id is not None
        with self._changed:
            todo = run.unsent()
        for metrics, params, tags in _batches(todo):
            client.log_batch(run.run_id, metrics, params, tags)
        for path, folder in todo.artifacts.items():
            client.log_artifacts(run.run_id, str(folder), path)
        if todo.status != run.sent.status:
            _set_status(client, run.run_id, todo.status, run.ended)
        with self._changed:
            run.sent.add(todo)

    def _begin(self, client: MlflowClient, run: _Run) -> None:
        known = self._children.pop(run.number, None) if run.number is not None else None
        if known is None:
            tags = {} if run.number is None else {"mlflow.parentRunId": self._runs[None].run_id}
            known = client.create_run(self._experiment_id, int(run.started * 1000), tags, run.name)
        with self._changed:
            run.adopt(known)

    def _write_page(self, client: MlflowClient) -> None:
        with self._changed:
            sweep, columns = self._runs[None].name, self._columns
        if len(columns) > self._columns_written:
            client.set_experiment_tag(self._experiment_id, f"mlflow.sharedViewState.{sweep}", _view(sweep, columns))
            self._columns_written = len(columns)

    def _say_once(self, error: Exception) -> None:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if self._failure is None and not self._given_up:
            log.warning("MLflow at %s: %s; the sweep goes on and tries again.", _masked(self.uri), _masked(reason))
        self._failure = _masked(reason)
        log.debug("MLflow at %s", _masked(self.uri), exc_info=error)


def default_uri(storage: StoragePaths) -> str:
    """The SQLite store that all sweeps of this storage share."""
    return f"sqlite:///{storage.tracking_database}"


def ui_command(storage: Path, port: int = 5000) -> list[str]:
    """The command line that opens MLflow's UI on this storage, for this machine only."""
    paths = StoragePaths(storage.absolute())
    return [
        sys.executable, "-m", "mlflow", "server",
        "--backend-store-uri", default_uri(paths),
        "--default-artifact-root", paths.tracking_artifacts.as_uri(),
        "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip


def page_of(experiment_id: str, sweep: str) -> str:
    """The part of an address, behind the server's, that shows the trials of this sweep side by side."""
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={quote(sweep)}&workflowType=machine_learning"


def versions() -> dict[str, str]:
    """What a result may depend on, as tags: the Python and the packages."""
    packages = ("kdray", "ray", "torch", "transformers", "datasets", "optuna", "mlflow")
    return {
        "version.python": platform.python_version(),
        **{f"version.{name}": metadata.version(name) for name in packages},
    }


def git_commit(folder: Path) -> str | None:
    """The commit checked out in this folder, with `-dirty` where files differ from it; None outside a repository."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def trial_name(record: TrialRecord) -> str:
    """What a trial is called in MLflow."""
    depth = record.params.get("student.depth")
    return f"trial {record.number:03d}" + (f" depth {depth}" if depth is not None else "")


def _answer_soon() -> None:
    """MLflow tries a dead server for minutes by default; the thread tries again by itself."""
    for name, value in (("MAX_RETRIES", "1"), ("TIMEOUT", "10"), ("BACKOFF_FACTOR", "1")):
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)


def _source_tags() -> dict[str, str]:
    return {
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "LOCAL",
    }


def _history(record: TrialRecord) -> dict[tuple[str, int], Metric]:
    """All the record's numbers. Their times follow from the record, so that a replay sends the same points."""
    at = record.started
    found = _metrics(record.costs, int(at * 1000), 0)
    for index, evaluation in enumerate(record.history, start=1):
        at += evaluation.get("train_seconds", 1.0) + evaluation.get("eval_seconds", 0.0)
        values = {name: value for name, value in evaluation.items() if name != "step"}
        found |= _metrics(values, int(at * 1000), int(evaluation.get("step", index)))
    return found


def _metrics(values: Mapping[str, float], at: int, step: int) -> dict[tuple[str, int], Metric]:
    return {
        (name, step): Metric(name, float(value), at, step)
        for name, value in values.items()
        if isinstance(value, int | float)
    }


def _params(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: _cut(_masked(str(value)), _LONGEST_PARAM) for name, value in values.items()}


def _tags(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: _cut(_masked(str(value)), _LONGEST_TAG) for name, value in values.items()}


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 2]} …"


def _masked(text: str) -> str:
    """Without the name and password an address may carry."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def _batches(content: _Content) -> Iterator[tuple[Sequence[Metric], Sequence[Param], Sequence[RunTag]]]:
    metrics = _parts(list(content.metrics.values()), _METRICS)
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


def _children(client: MlflowClient, parent: Run) -> Iterator[Run]:
    token = None
    while True:
        found = client.search_runs(
            [parent.info.experiment_id],
            f"tags.mlflow.parentRunId = '{parent.info.run_id}'",
            ViewType.ACTIVE_ONLY,
            max_results=1000,
            page_token=token,
        )
        yield from (run for run in found if "kdray.trial" in run.data.tags)
        if not (token := found.token):
            return


def _column(kind: str, names: Iterable[str]) -> list[str]:
    return [f"{kind}.`{name}`" for name in names]


def _view(sweep: str, columns: Sequence[str]) -> str:
    """What the UI's own Share button would store: the runs of this sweep, nested, with these columns."""
    order = ["0", "attributes.`Run Name`", "runDateAndNestInfo", "duration", *columns]
    widths = {name: 40 + 8 * len(name.split("`")[1]) for name in columns}  # pixels: the heading can be read in full
    return json.dumps(
        {
            "columnOrder": order,
            "columnWidths": {
                "0": 50,
                "attributes.`Run Name`": 220,
                "runDateAndNestInfo": 140,
                "duration": 90,
                **widths,
            },
            "searchFilter": f"tags.`kdray.sweep` = '{sweep}'",
            "orderByKey": "attributes.start_time",
            "orderByAsc": False,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "modelVersionFilter": "All Runs",
            "selectedColumns": list(columns),
        }
    )
