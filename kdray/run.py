"""The stages of a sweep in order, from the rows and the teacher to the shipped student.

Each stage finds its finished work on disk and skips it, so running the same sweep again continues it. Each stage
returns a value, and the next stages take it.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from kdray.report.screen import NullScreen, Screen, StageTimer
from kdray.search.claim import claim_folder
from kdray.search.ledger import Ledger
from kdray.slots.cluster import connect
from kdray.slots.local import LocalSlots
from kdray.slots.pool import SlotPool
from kdray.slots.ray_slots import open_slots
from kdray.stages.bookkeeping import open_sweep_run
from kdray.stages.choosing import choose
from kdray.stages.preparing import prepare
from kdray.stages.reading import SweepRecords
from kdray.stages.registering import register_chosen
from kdray.stages.retraining import confirm, train_controls
from kdray.stages.searching import measure_costs, search
from kdray.stages.session import Session
from kdray.stages.shipping import Outcome, ship, write_results
from kdray.stages.teaching import teach
from kdray.storage.bucket_copies import sync_with_bucket
from kdray.storage.files import write_json
from kdray.storage.owner import own_sweep
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.tracking.origin import describe_origin


@dataclass(frozen=True)
class RunOptions:
    """Where a sweep runs, and whether it continues earlier work."""

    address: str | None = None
    """The Ray cluster to join. None: a running cluster if Ray finds one, else a Ray that is started on this machine."""
    require_cluster: bool = False
    """Raise ResourceError rather than start Ray on this machine."""
    fresh: bool = False
    """Delete the earlier results of this sweep, and start over."""
    local: bool = False
    """Run every job in this process, without Ray."""


def run(sweep: Sweep, paths: SweepPaths, options: RunOptions = RunOptions(), screen: Screen | None = None) -> Outcome:
    """Run a sweep, or continue it.

    Raises Refused for a mistake in the settings, the data, the models or the storage, before any training; SweepFailed
    when no trial completed.
    """
    screen = screen or NullScreen()
    with own_sweep(paths.owner, screen.note), sync_with_bucket(paths, screen.note):
        ledger = claim_folder(sweep.identity(), paths, options.fresh)
        write_json(paths.origin, origin := describe_origin())
        with StageTimer(screen, paths.times) as timer:
            return story(sweep, paths, ledger, timer, origin, open_pool(sweep, paths, timer, options))


def story(
    sweep: Sweep,
    paths: SweepPaths,
    ledger: Ledger,
    screen: StageTimer,
    origin: dict[str, str],
    opening: AbstractContextManager[SlotPool],
) -> Outcome:
    """Run the stages of a sweep in a folder that this process owns; entering `opening` gives the slots."""
    # Before the slots are opened: a mistake in the data or the models is found without waiting for Ray.
    material = prepare(sweep, paths, ledger, screen)
    # Without slots of their own, all jobs run in this process one after the other: no slot waits while MLflow writes.
    with (
        opening as slots,
        open_sweep_run(sweep, paths, ledger, screen.note, own_process=not slots.runs_in_caller) as tracker,
    ):
        session = Session(sweep=sweep, paths=paths, ledger=ledger, screen=screen, slots=slots, tracker=tracker)
        lessons = teach(session, material)
        costs = measure_costs(session, material, lessons)
        teacher = lessons.metrics | costs.teacher
        records = search(session, material, lessons, costs)
        controls = train_controls(session, lessons, records)
        verdict = confirm(session, lessons, records, teacher)
        decision = ship(session, lessons, choose(session, records, controls, verdict, teacher))
        sweep_records = SweepRecords(
            decision=decision,
            teacher=teacher,
            conditions=costs.conditions,
            times=screen.times,
            origin=origin,
            lineage=lessons.lineage.with_costs(costs.by_teacher),
        )
        results = write_results(session, decision, lessons.lineage, sweep_records)
    uri = sweep.tracking.uri or ""
    return Outcome(
        paths=paths,
        figures=results.figures,
        page=tracker.page_path(),
        server=uri if uri.startswith("http") else None,
        registered=register_chosen(session, results),
    )


@contextmanager
def open_pool(sweep: Sweep, paths: SweepPaths, screen: Screen, options: RunOptions) -> Iterator[SlotPool]:
    """Open the slots of the sweep: in this process, or on a Ray cluster that is joined or started."""
    if options.local:
        # As many threads as one slot on Ray has: sums and latencies depend on the number of threads.
        threads = max(1, int(sweep.slots.cpus or os.cpu_count() or 1))
        with LocalSlots(threads) as local_slots:
            yield local_slots
        return
    cluster = connect(options.address, options.require_cluster, paths.logs, screen.note)
    try:
        screen.note(cluster.sentence)
        with open_slots(sweep.slots, paths.logs, paths.owner, screen.note) as ray_slots:
            yield ray_slots
    finally:
        cluster.close()
