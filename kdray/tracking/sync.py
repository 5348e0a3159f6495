"""`kdray sync`: sends the changes that MLflow did not receive while the sweep ran, and reports the progress.

No driver runs at that time. A run whose status is still RUNNING belonged to a driver that was killed, and is closed.
"""

import logging
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

from kdray.errors import StorageError, TrackingError
from kdray.safe_text.secrets import mask_secrets
from kdray.search.claim import open_ledger
from kdray.search.ledger import Ledger
from kdray.storage.bucket_copies import sync_with_bucket
from kdray.storage.mirror import list_bucket
from kdray.storage.owner import own_sweep
from kdray.storage.paths import SweepPaths, display_path
from kdray.tracking.content import STATUS, RunContent, TrackedRun, trial_content
from kdray.tracking.ids import save_run_ids, sweep_run_id, tracked_sweep
from kdray.tracking.sender import Sender, SentCounts, describe_error
from kdray.tracking.settings import Tracking
from kdray.tracking.spool import Spool, TrackingTarget
from kdray.tracking.tracker import RunNumber

log = logging.getLogger(__name__)

_PAUSE_S = 1.0  # between two tries

Runs = dict[RunNumber, TrackedRun]


@dataclass(frozen=True)
class SyncResult:
    """The address of the store, without secrets, and how much it has received."""

    uri: str
    sent: SentCounts


def send_spool(
    paths: SweepPaths, uri: str | None, note: Callable[[str], None], progress: Callable[[int, int], None]
) -> SyncResult | None:
    """Send the changes in the sweep's spool to the store at `uri`; None if there is nothing to send.

    `uri` None is the store of the sweep. `note` receives sentences for the user, `progress` the number of complete runs
    and of all runs. Raises StorageError if there is no sweep in this folder, or a running one, or if
    the address of its store is one that the user has not given on this machine; SpecError if the address
    of the store has a secret; TrackingError if the store has received nothing for `tracking.patience_s`.
    """
    if not (paths.settings.exists() or list_bucket(paths.root)):
        raise StorageError(
            f"{display_path(paths.root)}: there is no sweep here; give STORAGE/NAME, such as results/quickstart."
        )
    with own_sweep(paths.owner, note), sync_with_bucket(paths, note):
        target = TrackingTarget.read(paths)
        return None if target is None else _send_to(target, paths, uri, note, progress)


def _send_to(
    target: TrackingTarget,
    paths: SweepPaths,
    uri: str | None,
    note: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> SyncResult | None:
    """See `send_spool`; the caller owns the sweep."""
    with Spool(paths) as spool:
        changes = spool.read()
        # Without an ending the driver was killed: its runs must be closed even if the spool is empty.
        if not changes and target.ending:
            return None
        tracking = target.tracking_at(uri, paths)
        ledger = open_ledger(paths)
        runs = _desired_runs(paths, ledger, changes, killed=target.ending is None)
        sender = Sender(tracking, paths, tracked_sweep(ledger), runs, threading.RLock())
        for record in ledger.records():
            sender.add_columns(record)
        try:
            _send_runs(sender, runs, tracking, note, progress)
        finally:
            save_run_ids(ledger, {number: run.run_id for number, run in runs.items() if run.run_id})
        spool.clear()
        replace(target, ending=target.ending or "interrupted").write(paths)
    return SyncResult(sender.uri, sender.sent)


def _desired_runs(paths: SweepPaths, ledger: Ledger, changes: list[tuple[RunNumber, RunContent]], killed: bool) -> Runs:
    """All runs of the sweep with their desired content, from the spool and the ledger.

    The ledger is read because it may know how a trial ended when a killed driver had not spooled that yet.
    """
    runs: Runs = {None: TrackedRun(None, RunContent(paths.name), run_id=sweep_run_id(ledger))}
    for number, change in changes:
        runs.setdefault(number, TrackedRun(number)).desired.add(change)
    for record in ledger.records():
        content = trial_content(paths.name, record, {}, {})
        if record.state == "running":
            # The spool may have an "interrupted" from the end of the session, which "running" must not replace.
            content.status = None
            del content.tags["kdray.status"]
        run = runs.setdefault(record.number, TrackedRun(record.number))
        run.run_id = record.run_id
        run.desired.add(content)
    if killed:
        ended = _last_time(runs)
        interrupted = {record.number for record in ledger.records() if record.state == "running"}
        for run in runs.values():
            if run.number is None or run.number in interrupted:
                run.desired.add(
                    RunContent(ended=ended, status=STATUS["interrupted"], tags={"kdray.status": "interrupted"})
                )
    return runs


def _last_time(runs: Runs) -> float:
    """The latest time in the runs, in seconds since the epoch: about when the driver was killed."""
    contents = [run.desired for run in runs.values()]
    points = [point.time_ms / 1000 for content in contents for point in content.metrics.values()]
    return min(time.time(), max([*points, *(max(content.started, content.ended) for content in contents)]))


def _send_runs(
    sender: Sender, runs: Runs, tracking: Tracking, note: Callable[[str], None], progress: Callable[[int, int], None]
) -> None:
    """Send one run after the other; after an error try again, as long as the store receives something now and then."""
    waiting = list(runs.values())
    failing_since = 0.0
    while True:
        start = time.monotonic()
        try:
            if not sender.is_connected:
                sender.connect()
                # After a lost connection the store may lack what it has received before: check all runs again.
                waiting = [run for run in runs.values() if run not in waiting] + waiting
            while waiting:
                progress(len(runs) - len(waiting), len(runs))
                sender.send(waiting[0])
                del waiting[0]
            progress(len(runs), len(runs))
            sender.write_page()
            return sender.delete_duplicates()
        except Exception as error:  # a store may raise any error
            log.info("MLflow at %s: %s", sender.uri, mask_secrets("".join(traceback.format_exception(error))))
            sender.is_connected, reason = False, describe_error(error, tracking.timeout_s)
            waiting = waiting[1:] + waiting[:1]  # the run itself may be the cause: the other runs come first
            if not failing_since:
                failing_since = start
                note(f"MLflow at {sender.uri} cannot be written to ({reason}); trying again.")
            if time.monotonic() - max(failing_since, sender.last_success_s) >= tracking.patience_s:
                raise TrackingError(
                    f"MLflow at {sender.uri} has taken nothing for {tracking.patience_s:g} s "
                    f"({reason}). The unsent changes of {len(waiting)} of {len(runs)} runs stay in the sweep's folder; "
                    "run the same command again when the server answers."
                ) from None
            time.sleep(_PAUSE_S)
