"""Sends later what a sweep could not send: `kdray sync`. It waits for nothing but the store, and says how far it is.

No driver is running then: what still says RUNNING was killed with it, and is closed.
"""

import logging
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from kdray.errors import StorageError, TrackingError
from kdray.search.claim import open_ledger
from kdray.search.ledger import Ledger
from kdray.storage.bucket_copies import sync_with_bucket
from kdray.storage.mirror import list_bucket
from kdray.storage.owner import own_sweep
from kdray.storage.paths import SweepPaths, display_path
from kdray.tracking.content import STATUS, RunContent, TrackedRun, trial_content
from kdray.tracking.ids import save_run_ids, sweep_key, sweep_run_id
from kdray.tracking.sender import Sender, SentCounts, describe_error
from kdray.tracking.settings import Tracking, mask_secrets
from kdray.tracking.spool import Spool, TrackingTarget

log = logging.getLogger(__name__)

_PAUSE_S = 1.0  # between two tries

Runs = dict[int | None, TrackedRun]


@dataclass(frozen=True)
class SyncResult:
    """What the store at this address took."""

    uri: str
    sent: SentCounts


def send_spool(
    paths: SweepPaths, uri: str | None, say: Callable[[str], None], progress: Callable[[int, int], None]
) -> SyncResult | None:
    """Send what lies in the sweep's spool; None when there is nothing to send.

    Raises StorageError where there is no sweep, or one that is running; SpecError when the store's address is not
    known; TrackingError when the store has taken nothing for `tracking.patience_s`.
    """
    if not (paths.settings.exists() or list_bucket(paths.root)):
        raise StorageError(
            f"{display_path(paths.root)}: there is no sweep here; give STORAGE/NAME, such as results/quickstart."
        )
    with own_sweep(paths.owner, say), sync_with_bucket(paths, say):
        target = TrackingTarget.read(paths)
        return None if target is None else _synced(paths, target, uri, say, progress)


def _synced(
    paths: SweepPaths,
    target: TrackingTarget,
    uri: str | None,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> SyncResult | None:
    with Spool(paths) as spool:
        changes = spool.read()
        if not changes and target.ending:
            return None
        tracking = target.tracking_at(uri)
        ledger = open_ledger(paths)
        runs = _runs(paths, ledger, changes, killed=target.ending is None)
        sender = Sender(tracking, paths, sweep_key(ledger), runs, threading.RLock())
        for record in ledger.records():
            sender.show(record)
        try:
            _send(sender, runs, tracking, say, progress)
        finally:
            save_run_ids(ledger, {number: run.run_id for number, run in runs.items() if run.run_id})
        spool.clear()
        TrackingTarget(target.tracking, target.ending or "interrupted").write(paths)
    return SyncResult(mask_secrets(sender.uri), sender.sent)


def _runs(paths: SweepPaths, ledger: Ledger, changes: list[tuple[int | None, RunContent]], killed: bool) -> Runs:
    """Every run of the sweep as it ought to be, by the spool and by the ledger, which knows how each trial ended."""
    runs: Runs = {None: TrackedRun(None, RunContent(paths.name), run_id=sweep_run_id(ledger))}
    for number, change in changes:
        runs.setdefault(number, TrackedRun(number)).wanted.add(change)
    for record in ledger.records():
        told = trial_content(paths.name, record, {}, {})
        if record.state == "running":  # the spool knows better how that was left
            told.status = None
            del told.tags["kdray.status"]
        run = runs.setdefault(record.number, TrackedRun(record.number))
        run.run_id = record.run_id
        run.wanted.add(told)
    if killed:
        last = _last_sign(runs)
        left = {record.number for record in ledger.records() if record.state == "running"}
        for run in runs.values():
            if run.number is None or run.number in left:
                run.wanted.add(
                    RunContent(ended=last, status=STATUS["interrupted"], tags={"kdray.status": "interrupted"})
                )
    return runs


def _last_sign(runs: Runs) -> float:
    """When the sweep was last heard of, in seconds since the epoch."""
    contents = [run.wanted for run in runs.values()]
    points = [point.at / 1000 for content in contents for point in content.metrics.values()]
    return min(time.time(), max([*points, *(max(content.started, content.ended) for content in contents)]))


def _send(
    sender: Sender, runs: Runs, tracking: Tracking, say: Callable[[str], None], progress: Callable[[int, int], None]
) -> None:
    """Send run after run, and try again what fails, as long as the store takes something now and then."""
    waiting = list(runs.values())
    failing_since = 0.0
    while True:
        begun = time.monotonic()
        try:
            if not sender.connected:
                sender.connect()
                waiting = [run for run in runs.values() if run not in waiting] + waiting
            while waiting:
                progress(len(runs) - len(waiting), len(runs))
                sender.send(waiting[0])
                del waiting[0]
            progress(len(runs), len(runs))
            sender.write_page()
            return sender.settle()
        except Exception as error:  # whatever a store may raise
            log.info(
                "MLflow at %s: %s", mask_secrets(sender.uri), mask_secrets("".join(traceback.format_exception(error)))
            )
            sender.connected, why = False, describe_error(error, tracking.timeout_s)
            waiting = waiting[1:] + waiting[:1]  # the one that failed may be at fault itself
            if not failing_since:
                failing_since = begun
                say(f"MLflow at {mask_secrets(sender.uri)} cannot be written to ({why}); trying again.")
            if time.monotonic() - max(failing_since, sender.answered) >= tracking.patience_s:
                raise TrackingError(
                    f"MLflow at {mask_secrets(sender.uri)} has taken nothing for {tracking.patience_s:g} s "
                    f"({why}). What is unsent of {len(waiting)} of {len(runs)} runs stays in the "
                    "sweep's folder; run the same command again when it answers."
                ) from None
            time.sleep(_PAUSE_S)
