"""A sweep in MLflow: one parent run for the sweep, and a nested run for each trial.

The callers only state the desired content of the runs. Changes go into the sweep's spool, and a thread sends them in
batches, so that no server delays the training. The thread tries again as long as the sweep runs. Changes that a server
has not received when the sweep ends stay in the spool; the next session of the sweep, or `kdray sync`, sends them.
"""

import logging
import shlex
import threading
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from kdray.evaluation.trial_record import TrialRecord
from kdray.safe_text.secrets import mask_secrets
from kdray.storage.mirror import url_of
from kdray.storage.paths import SweepPaths, display_path
from kdray.storage.trust import accept_address
from kdray.tracking.content import STATUS, RunContent, TrackedRun, params_of, points_of, tags_of, trial_content
from kdray.tracking.ids import TrackedSweep
from kdray.tracking.origin import source_tags
from kdray.tracking.page import page_path
from kdray.tracking.sender import Sender, describe_error
from kdray.tracking.settings import Tracking, default_uri
from kdray.tracking.spool import Spool, TrackingTarget
from kdray.tracking.tracker import Ending, NullTracker, RunNumber, Tracker

log = logging.getLogger(__name__)

_PAUSE_S = 0.3  # changes within this time are sent together
_MAX_PAUSE_S = 15.0  # between two tries at a server that does not answer
_INTERRUPT_PATIENCE_S = 5.0  # for a server, when a user has stopped the sweep
_FAILURES_BEFORE_NOTE = 2  # a single failed request that succeeds a second later needs no note


def open_tracker(
    tracking: Tracking,
    paths: SweepPaths,
    sweep: TrackedSweep,
    note: Callable[[str], None] = lambda sentence: None,
    *,
    own_process: bool = False,
) -> Tracker:
    """The tracker for this sweep. It opens no connection before `start_sweep`.

    All runs of the sweep have its key in a tag, in every session. `note` receives sentences for the user. With
    `own_process`, MLflow's client has a process of its own.
    """
    return MlflowTracker(tracking, paths, sweep, note, own_process=own_process) if tracking.enabled else NullTracker()


class MlflowTracker:
    """Keeps the runs of one sweep in an MLflow store up to date."""

    def __init__(
        self,
        tracking: Tracking,
        paths: SweepPaths,
        sweep: TrackedSweep,
        note: Callable[[str], None],
        *,
        own_process: bool,
    ) -> None:
        self.uri = tracking.uri_in(paths)
        self._tracking, self._paths, self._note = tracking, paths, note
        self._changed = threading.Condition()
        """Guards the state below, and wakes the thread."""
        self._runs: dict[RunNumber, TrackedRun] = {}
        process_log = paths.logs / "mlflow.log" if own_process else None
        self._sender = Sender(tracking, paths, sweep, self._runs, self._changed, process_log)
        self._spool: Spool | None = None
        self._waiting: dict[RunNumber, None] = {}
        """The runs with unsent changes, in the order of sending; a dict because Python has no ordered set."""
        self._is_closing = False
        """Whether the sweep has ended, so that the thread ends when everything is sent."""
        self._is_closed = False
        """Whether `end_sweep` waits for the thread no longer; the thread then sends nothing more."""
        self._failures, self._failing_since, self._reason = 0, 0.0, ""
        self._failure_is_noted = False
        self._thread = threading.Thread(target=self._send_changes, name="kdray-tracking", daemon=True)

    def start_sweep(self, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None = None) -> None:
        """Open the sweep's run, or continue the existing one, and send what an earlier session left unsent.

        Raises StorageError when another process has locked the sweep's spool.
        """
        name = self._paths.name
        self._spool = Spool(self._paths)
        for number, change in self._spool.read():
            self._run(number).desired.add(change)
            self._waiting[number] = None
        self._run(None).run_id = run_id
        TrackingTarget(self._tracking).write(self._paths)
        if self._tracking.uri:
            accept_address(self._tracking.uri)  # so that `kdray sync` may use it, too
        tags = {**source_tags(), **tags, "kdray.sweep": name, "kdray.status": "running"}
        content = RunContent(
            name=name, started=time.time(), status="RUNNING", params=params_of(params), tags=tags_of(tags)
        )
        self._update(None, content)
        self._thread.start()
        if (bucket := url_of(self._paths.storage)) and self._tracking.uri_in(self._paths) == default_uri(self._paths):
            self._warn(
                f"MLflow's database is a file on this machine, {self._paths.tracking_database}, because SQLite cannot "
                f"be used in {bucket}. Another machine that continues the sweep writes all runs into a new database. "
                "An MLflow server (--tracking-uri) has one database for all machines."
            )

    def sweep(
        self,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Add params, metrics and tags to the sweep's run."""
        points = points_of(metrics or {}, time.time(), 0)
        self._update(None, RunContent(params=params_of(params or {}), tags=tags_of(tags or {}), metrics=points))

    def trial(self, record: TrialRecord, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Bring the trial's run up to date with its record; `params` are all settings, searched and fixed ones."""
        with self._changed:
            run = self._run(record.number)
            run.run_id = run.run_id or record.run_id
            self._sender.add_columns(record)
            known, run.evaluations = run.evaluations, len(record.history)
        # The evaluations before are in the desired content: to compare all of them at each one takes ever longer.
        self._update(record.number, trial_content(self._paths.name, record, params, tags, known))

    def log_artifacts(self, folder: Path, path: str, trial: int | None = None) -> None:
        """Copy a folder to `path` among the artifacts of this trial's run; None: of the sweep's run."""
        # A trial's folder does not change. A folder of the sweep, such as its report, may have new files under the same
        # name, so it is always sent again.
        if trial is None:
            with self._changed:
                for content in (self._run(None).desired, self._run(None).stored):
                    content.artifacts.pop(path, None)
        self._update(trial, RunContent(artifacts={path: folder}))

    def run_ids(self, numbers: Collection[RunNumber] | None = None) -> dict[RunNumber, str]:
        """The ids that are known so far, of these runs; None: of all runs."""
        with self._changed:
            known = self._runs.keys() if numbers is None else self._runs.keys() & numbers
            return {number: run_id for number in known if (run_id := self._runs[number].run_id)}

    def page_path(self) -> str | None:
        """The path of the page that compares the sweep's trials, without the server's address; None while not known."""
        return page_path(self._sender.experiment_id, self._paths.name) if self._sender.experiment_id else None

    def end_sweep(self, ending: Ending) -> None:
        """Close the sweep's run and all runs that are still open, and wait while the store receives changes."""
        with self._changed:
            for number in [number for number, run in self._runs.items() if run.desired.status == "RUNNING"]:
                how = ending if number is None else "interrupted"
                self._update(number, RunContent(ended=time.time(), status=STATUS[how], tags={"kdray.status": how}))
            self._is_closing = True
            self._changed.notify_all()
        try:
            patience_s = self._tracking.patience_s
            self._wait_for_thread(min(_INTERRUPT_PATIENCE_S, patience_s) if ending == "interrupted" else patience_s)
        finally:
            self._close(ending)

    # The callers' side: the desired content ---------------------------------------------------------------------------

    def _run(self, number: RunNumber) -> TrackedRun:
        return self._runs.setdefault(number, TrackedRun(number))

    def _update(self, number: RunNumber, content: RunContent) -> None:
        """Add the content to the run's desired content, write what is new into the spool, and wake the thread."""
        with self._changed:
            run = self._run(number)
            if change := content.missing_in(run.desired):
                run.desired.add(change)
                self._waiting[number] = None
                self._write_to_spool(number, change)
                self._changed.notify_all()

    def _write_to_spool(self, number: RunNumber, change: RunContent) -> None:
        try:
            if self._spool:
                self._spool.append(number, change)
        except OSError as error:
            # Not raised: the change is in memory, too, so the thread can still send it.
            log.warning("%s: cannot be written (%s); MLflow may miss some of this sweep.", self._paths.spool, error)

    def _wait_for_thread(self, patience_s: float) -> None:
        """Wait until the thread has sent everything, or the store has received nothing for `patience_s`."""
        start = time.monotonic()
        while self._thread.is_alive() and (
            self._sender.is_uploading or time.monotonic() - max(start, self._sender.last_success_s) < patience_s
        ):
            self._thread.join(0.1)

    def _close(self, ending: Ending) -> None:
        """Close the spool, write how the session ended, and report what is unsent."""
        with self._changed:
            self._is_closed = True
            unsent = len(self._waiting)
            if self._spool:
                if not unsent:
                    self._spool.clear()
                self._spool.close()
                self._spool = None
        self._sender.close()
        TrackingTarget(self._tracking, ending).write(self._paths)
        if unsent:
            self._warn(
                f"MLflow at {self.uri} did not take the last changes of {unsent} of {len(self._runs)} runs "
                f"({self._reason or 'no answer in time'}). They are kept; send them later with: "
                f"kdray sync {shlex.quote(display_path(self._paths.root))}"
            )

    # The thread's side: sending ---------------------------------------------------------------------------------------

    def _send_changes(self) -> None:
        """The thread: send until the sweep has ended and everything is sent, or until `end_sweep` waits no longer."""
        while self._wait_for_changes():
            try:
                if not self._sender.is_connected:
                    self._sender.connect()
                    self._enqueue_all()
                self._send_waiting()
                self._sender.write_page()
                if self._is_closing:
                    self._sender.delete_duplicates()
            except Exception as error:  # a store may raise any error, and the sweep continues without the store
                if not self._handle_failure(error):
                    return
            else:
                self._handle_success()

    def _wait_for_changes(self) -> bool:
        """Wait until there is something to send; False when the sweep has ended and everything is sent."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._is_closing)
            self._changed.wait_for(lambda: self._is_closing, _PAUSE_S)
            return bool(self._waiting) and not self._is_closed

    def _enqueue_all(self) -> None:
        """Compare all runs with the store again after a connection, those without known changes first.

        The store may have lost changes, or it may hold open runs of a driver that was killed.
        """
        with self._changed:
            others = [number for number in self._runs if number not in self._waiting]
            self._waiting = dict.fromkeys([*others, *self._waiting])

    def _send_waiting(self) -> None:
        """Send one run after the other. A run that fails moves to the end, because it may be the cause itself."""
        for number in list(self._waiting):
            if self._is_closed:
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
                if not run.unsent():  # a caller may have added a change while the run was sent
                    del self._waiting[number]

    def _handle_success(self) -> None:
        """Empty the spool when everything is sent, and report the end of a failure that was reported."""
        with self._changed:
            if self._waiting or self._is_closed:
                return
            failure_was_noted = self._failure_is_noted
            self._failures, self._reason, self._failure_is_noted = 0, "", False
            if self._spool:
                self._spool.clear()
        if failure_was_noted:
            self._warn(f"MLflow at {self.uri} answers again: it has everything now.")

    def _handle_failure(self, error: Exception) -> bool:
        """Report the failure once, and wait before the next try; False when there is no next try."""
        now = time.monotonic()
        self._sender.is_connected = False
        self._reason = describe_error(error, self._tracking.timeout_s)
        self._failing_since = max(self._sender.last_success_s, self._failing_since if self._failures else now)
        self._failures += 1
        if self._failures == 1:
            log.info("MLflow at %s: %s", self.uri, mask_secrets("".join(traceback.format_exception(error))))
        if self._failures >= _FAILURES_BEFORE_NOTE and not self._failure_is_noted and not self._is_closed:
            self._failure_is_noted = True
            self._warn(
                f"MLflow at {self.uri} cannot be written to ({self._reason}). The sweep continues; the unsent changes "
                "are kept and sent when MLflow answers."
            )
        with self._changed:
            if self._is_closed or (self._is_closing and now - self._failing_since >= self._tracking.patience_s):
                return False
            pause_s = min(_PAUSE_S * 3**self._failures, _MAX_PAUSE_S)
            if self._is_closing:
                self._changed.wait_for(lambda: self._is_closed, min(pause_s, 1.0))
            else:
                self._changed.wait_for(lambda: self._is_closing, pause_s)
            return not self._is_closed

    def _warn(self, sentence: str) -> None:
        log.warning("%s", sentence)
        self._note(sentence)
