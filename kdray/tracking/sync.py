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
from kdray.search.claim import reopened
from kdray.search.ledger import Ledger
from kdray.storage.bucket_copies import kept_in_bucket
from kdray.storage.mirror import listed
from kdray.storage.owner import owned
from kdray.storage.paths import SweepPaths, shown
from kdray.tracking.content import STATUS, Content, TrackedRun, trial_content
from kdray.tracking.ids import key_of, note_runs, sweep_run
from kdray.tracking.sender import Sender, Sent, reason
from kdray.tracking.settings import Tracking, masked
from kdray.tracking.spool import Spool, Target

log = logging.getLogger(__name__)

_PAUSE_S = 1.0  # between two tries

Runs = dict[int | None, TrackedRun]


@dataclass(frozen=True)
class Synced:
    """What the store at this address took."""

    uri: str
    sent: Sent


def sync(
    paths: SweepPaths, uri: str | None, say: Callable[[str], None], progress: Callable[[int, int], None]
) -> Synced | None:
    """Send what lies in the sweep's spool; None when there is nothing to send.

    Raises StorageError where there is no sweep, or one that is running; SpecError when the store's address is not
    known; TrackingError when the store has taken nothing for `tracking.patience_s`.
    """
    if not (paths.settings.exists() or listed(paths.root)):
        raise StorageError(
            f"{shown(paths.root)}: there is no sweep here; give STORAGE/NAME, such as results/quickstart."
        )
    with owned(paths.owner, say), kept_in_bucket(paths, say):
        target = Target.read(paths)
        return None if target is None else _synced(paths, target, uri, say, progress)


def _synced(
    paths: SweepPaths, target: Target, uri: str | None, say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> Synced | None:  # fmt: skip
    with Spool(paths) as spool:
        changes = spool.read()
        if not changes and target.ending:
            return None
        tracking = target.tracking_at(uri)
        ledger = reopened(paths)
        runs = _runs(paths, ledger, changes, killed=target.ending is None)
        sender = Sender(tracking, paths, key_of(ledger), runs, threading.RLock())
        for record in ledger.records():
            sender.show(record)
        try:
            _send(sender, runs, tracking, say, progress)
        finally:
            note_runs(ledger, {number: run.run_id for number, run in runs.items() if run.run_id})
        spool.clear()
        Target(target.tracking, target.ending or "interrupted").write(paths)
    return Synced(masked(sender.uri), sender.sent)


def _runs(paths: SweepPaths, ledger: Ledger, changes: list[tuple[int | None, Content]], killed: bool) -> Runs:
    """Every run of the sweep as it ought to be, by the spool and by the ledger, which knows how each trial ended."""
    runs: Runs = {None: TrackedRun(None, Content(paths.name), run_id=sweep_run(ledger))}
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
                run.wanted.add(Content(ended=last, status=STATUS["interrupted"], tags={"kdray.status": "interrupted"}))
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
            log.info("MLflow at %s: %s", masked(sender.uri), masked("".join(traceback.format_exception(error))))
            sender.connected, why = False, reason(error, tracking.timeout_s)
            waiting = waiting[1:] + waiting[:1]  # the one that failed may be at fault itself
            if not failing_since:
                failing_since = begun
                say(f"MLflow at {masked(sender.uri)} cannot be written to ({why}); trying again.")
            if time.monotonic() - max(failing_since, sender.answered) >= tracking.patience_s:
                raise TrackingError(
                    f"MLflow at {masked(sender.uri)} has taken nothing for {tracking.patience_s:g} s "
                    f"({why}). What is unsent of {len(waiting)} of {len(runs)} runs stays in the "
                    "sweep's folder; run the same command again when it answers."
                ) from None
            time.sleep(_PAUSE_S)
