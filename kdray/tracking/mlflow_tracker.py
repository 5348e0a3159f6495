"""A sweep in MLflow: one parent run, one nested run a trial, written by a thread so that no server holds up training.

The caller only says what a run ought to hold. What is new goes into the sweep's spool, and a thread sends it in batches
and tries again as long as the sweep runs. What a server has not taken when the sweep ends stays in the spool: the next
session of the sweep, or `kdray sync`, sends it. What a trial is worth and what happens to it is decided elsewhere.
"""

import logging
import shlex
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdray.evaluation.trial_record import TrialRecord
from kdray.storage.mirror import url_of
from kdray.storage.paths import SweepPaths, display_path
from kdray.tracking.content import STATUS, RunContent, TrackedRun, params_of, points, tags_of, trial_content
from kdray.tracking.origin import source_tags
from kdray.tracking.page import page_of
from kdray.tracking.sender import Sender, describe_error
from kdray.tracking.settings import Tracking, default_uri, mask_secrets
from kdray.tracking.spool import Spool, TrackingTarget
from kdray.tracking.tracker import Ending, NullTracker, Tracker

log = logging.getLogger(__name__)

_PAUSE_S = 0.3  # changes within it travel together
_LONGEST_PAUSE_S = 15.0  # between two tries at a server that does not answer
_HURRY_S = 5.0  # patience with a server when somebody has stopped the sweep
_TRIES_BEFORE_A_WORD = 2  # one request that fails and is repeated a second later is nothing to tell


def open_tracker(
    tracking: Tracking, paths: SweepPaths, key: str, say: Callable[[str], None] = lambda sentence: None
) -> Tracker:
    """The tracker for this sweep; it connects to nothing until the sweep is started.

    The runs of the sweep bear `key`, now and whenever it is gone on with; `say` tells a person.
    """
    return MlflowTracker(tracking, paths, key, say) if tracking.enabled else NullTracker()


class MlflowTracker:
    """Keeps the runs of one sweep in an MLflow store as they ought to be."""

    def __init__(self, tracking: Tracking, paths: SweepPaths, key: str, say: Callable[[str], None]) -> None:
        self.uri = mask_secrets(tracking.uri_in(paths))
        self._tracking, self._paths, self._say = tracking, paths, say
        self._changed = threading.Condition()
        self._runs: dict[int | None, TrackedRun] = {}
        self._sender = Sender(tracking, paths, key, self._runs, self._changed)
        self._spool: Spool | None = None
        self._waiting: dict[int | None, None] = {}  # an ordered set: the runs with something unsent
        self._closing = self._given_up = False
        self._failures, self._failing_since, self._reason, self._told = 0, 0.0, "", False
        self._thread = threading.Thread(target=self._write, name="kdray-tracking", daemon=True)

    def start_sweep(self, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None = None) -> None:
        """Open the sweep's run, or go on with the one that is there; what an earlier session left is sent, too.

        Raises StorageError when another process holds the sweep's spool.
        """
        name = self._paths.name
        self._spool = Spool(self._paths)
        for number, change in self._spool.read():
            self._run(number).wanted.add(change)
            self._waiting[number] = None
        self._run(None).run_id = run_id
        TrackingTarget(self._tracking).write(self._paths)
        tags = {**source_tags(), **tags, "kdray.sweep": name, "kdray.status": "running"}
        self._want(None, RunContent(name, time.time(), 0.0, "RUNNING", params_of(params), tags_of(tags)))
        self._thread.start()
        if (bucket := url_of(self._paths.storage)) and self._tracking.uri_in(self._paths) == default_uri(self._paths):
            self._tell(
                f"MLflow's database is a file of this machine, {self._paths.tracking_database}, for SQLite cannot live "
                f"in {bucket}. Another machine that goes on with the sweep tells everything to a new one; a server "
                "(--tracking-uri) keeps it."
            )

    def sweep(
        self,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Add to the sweep's run."""
        said = points(metrics or {}, time.time(), 0)
        self._want(None, RunContent(params=params_of(params or {}), tags=tags_of(tags or {}), metrics=said))

    def trial(self, record: TrialRecord, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Bring the trial's run up to its record; `params` are all its settings, searched or not."""
        with self._changed:
            run = self._run(record.number)
            run.run_id = run.run_id or record.run_id
            self._sender.show(record)
        self._want(record.number, trial_content(self._paths.name, record, params, tags))

    def log_artifacts(self, folder: Path, path: str, trial: int | None = None) -> None:
        """Copy a folder to `path` among the artifacts of this trial's run, or of the sweep's."""
        if trial is None:  # a trial's folder stays as it is; the sweep's may be another one by the same name
            with self._changed:
                for known in (self._run(None).wanted, self._run(None).sent):
                    known.artifacts.pop(path, None)
        self._want(trial, RunContent(artifacts={path: folder}))

    def run_ids(self) -> dict[int | None, str]:
        """The runs known by now: trial number -> run id, and None -> the sweep's."""
        with self._changed:
            return {number: run.run_id for number, run in self._runs.items() if run.run_id}

    def page(self) -> str | None:
        """The part of an address, behind the server's, that shows this sweep's trials side by side."""
        return page_of(self._sender.experiment_id, self._paths.name) if self._sender.experiment_id else None

    def end_sweep(self, ending: Ending) -> None:
        """Close the sweep's run, and those still running, and wait while the store takes what is unsent."""
        with self._changed:
            for number in [number for number, run in self._runs.items() if run.wanted.status == "RUNNING"]:
                how = ending if number is None else "interrupted"
                self._want(number, RunContent(ended=time.time(), status=STATUS[how], tags={"kdray.status": how}))
            self._closing = True
            self._changed.notify_all()
        try:
            patience_s = self._tracking.patience_s
            self._wait(min(_HURRY_S, patience_s) if ending == "interrupted" else patience_s)
        finally:
            self._conclude(ending)

    # what the caller wants

    def _run(self, number: int | None) -> TrackedRun:
        return self._runs.setdefault(number, TrackedRun(number))

    def _want(self, number: int | None, content: RunContent) -> None:
        """Spool what is new of it, and let the thread know."""
        with self._changed:
            run = self._run(number)
            if news := content.beyond(run.wanted):
                run.wanted.add(news)
                self._waiting[number] = None
                self._keep(number, news)
                self._changed.notify_all()

    def _keep(self, number: int | None, news: RunContent) -> None:
        try:
            if self._spool:
                self._spool.append(number, news)
        except OSError as error:  # the thread has it in memory
            log.warning("%s: cannot be written (%s); MLflow may miss some of this sweep.", self._paths.spool, error)

    def _wait(self, patience_s: float) -> None:
        """Wait for the thread, as long as the store takes something now and then."""
        asked = time.monotonic()
        while self._thread.is_alive() and (
            self._sender.uploading or time.monotonic() - max(asked, self._sender.answered) < patience_s
        ):
            self._thread.join(0.1)

    def _conclude(self, ending: Ending) -> None:
        with self._changed:
            self._given_up = True  # what the thread still meets is of no use to anyone
            unsent = len(self._waiting)
            if self._spool:
                if not unsent:
                    self._spool.clear()
                self._spool.close()
                self._spool = None
        TrackingTarget(self._tracking, ending).write(self._paths)
        if unsent:
            self._tell(
                f"MLflow at {self.uri} did not take the last changes of {unsent} of {len(self._runs)} runs "
                f"({self._reason or 'no answer in time'}). They are kept; send them later with: "
                f"kdray sync {shlex.quote(display_path(self._paths.root))}"
            )

    # what the thread does

    def _write(self) -> None:
        while self._anything_to_send():
            try:
                if not self._sender.connected:
                    self._sender.connect()
                    self._requeue()
                self._send_waiting()
                self._sender.write_page()
                if self._closing:
                    self._sender.settle()
            except Exception as error:  # whatever a store may raise, the sweep goes on without it
                if not self._failed(error):
                    return
            else:
                self._succeeded()

    def _anything_to_send(self) -> bool:
        """Waits until there is; False when the sweep has ended and all is sent, or nobody waits any more."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closing)
            self._changed.wait_for(lambda: self._closing, _PAUSE_S)
            return bool(self._waiting) and not self._given_up

    def _requeue(self) -> None:
        """All that is known: the store may have lost some of it, or hold runs of a driver that was killed."""
        with self._changed:
            others = [number for number in self._runs if number not in self._waiting]
            self._waiting = dict.fromkeys([*others, *self._waiting])

    def _send_waiting(self) -> None:
        """Send one run after the other; the one that fails goes to the end, for it may be at fault itself."""
        for number in list(self._waiting):
            if self._given_up:
                return
            run = self._runs[number]
            try:
                self._sender.send(run)
            except Exception:
                with self._changed:
                    del self._waiting[number]
                    self._waiting[number] = None
                raise
            with self._changed:
                if not run.unsent():
                    del self._waiting[number]

    def _succeeded(self) -> None:
        with self._changed:
            if self._waiting or self._given_up:
                return
            self._failures, self._reason, told, self._told = 0, "", self._told, False
            if self._spool:
                self._spool.clear()
        if told:
            self._tell(f"MLflow at {self.uri} answers again: it has everything now.")

    def _failed(self, error: Exception) -> bool:
        """Tell it once, and wait for the next try; False when there is to be none."""
        now = time.monotonic()
        self._sender.connected = False
        self._reason = describe_error(error, self._tracking.timeout_s)
        self._failing_since = max(self._sender.answered, self._failing_since if self._failures else now)
        self._failures += 1
        if self._failures == 1:
            log.info("MLflow at %s: %s", self.uri, mask_secrets("".join(traceback.format_exception(error))))
        if self._failures >= _TRIES_BEFORE_A_WORD and not self._told and not self._given_up:
            self._told = True
            self._tell(
                f"MLflow at {self.uri} cannot be written to ({self._reason}). The sweep goes on; what MLflow misses is "
                "kept and sent when it answers."
            )
        with self._changed:
            if self._given_up or (self._closing and now - self._failing_since >= self._tracking.patience_s):
                return False
            pause = min(_PAUSE_S * 3**self._failures, _LONGEST_PAUSE_S)
            if self._closing:
                self._changed.wait_for(lambda: self._given_up, min(pause, 1.0))
            else:
                self._changed.wait_for(lambda: self._closing, pause)
            return not self._given_up

    def _tell(self, sentence: str) -> None:
        log.warning("%s", sentence)
        self._say(sentence)
