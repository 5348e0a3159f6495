"""The story of a sweep, from teacher to chosen student.

Each step finds its finished work on disk and skips it: running the same sweep again goes on where it was left.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from kdray.choice.controls import Control
from kdray.data.splits import Splits, load_splits
from kdray.evaluation.costs import measure_costs
from kdray.models.pretrained import Pretrained
from kdray.models.student_sources import student_sources
from kdray.report.files import write_report
from kdray.report.screen import NullScreen, Screen, Timed
from kdray.search.claim import claim
from kdray.search.ledger import Ledger
from kdray.search.searcher import Study
from kdray.search.searching import search
from kdray.slots.cluster import connect
from kdray.slots.job import NOTE, Report
from kdray.slots.local import LocalSlots
from kdray.slots.pool import SlotPool
from kdray.slots.ray_slots import open_slots
from kdray.stages.bookkeeping import Keeper, tracked
from kdray.stages.choosing import Outcome, choose, figures_of, ship
from kdray.stages.registering import registered
from kdray.stages.retraining import Retraining
from kdray.stages.warm_start import comparable_trials
from kdray.storage.bucket_copies import kept_in_bucket
from kdray.storage.files import read_json, write_json
from kdray.storage.owner import owned
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.teacher.teacher import check_quality, obtain_source, obtain_teacher
from kdray.teacher.transfer import obtain_transfer_set
from kdray.tracking.origin import origin
from kdray.tracking.settings import masked
from kdray.training.trial import Lesson, Trial


def run(
    sweep: Sweep, paths: SweepPaths, *, screen: Screen | None = None, address: str | None = None,
    require_cluster: bool = False, fresh: bool = False, local: bool = False,
) -> Outcome:  # fmt: skip
    """Run a sweep, or go on with it.

    `local` runs every job in this process, without Ray. Raises Refused when something is wrong with what was asked,
    before any training; SweepFailed when no trial ran to its end.
    """
    screen = screen or NullScreen()
    with owned(paths.owner, screen.note), kept_in_bucket(paths, screen.note):
        ledger = claim(sweep.identity(), paths, fresh)
        write_json(paths.origin, origin())
        times = read_json(paths.times) if paths.times.exists() else {}
        with Timed(screen, times, lambda now: write_json(paths.times, now)) as timed:
            return story(sweep, paths, ledger, timed, slots_for(sweep, paths, timed, address, require_cluster, local))


def story(
    sweep: Sweep, paths: SweepPaths, ledger: Ledger, screen: Screen, opening: AbstractContextManager[SlotPool]
) -> Outcome:
    """The steps of a sweep, in a folder that is its own; `opening` gives it its slots."""
    screen.stage("Data")
    splits = load_splits(sweep.data, sweep.task)
    sweep.check_classes(splits)
    for note in (*splits.notes, sizes(splits)):
        screen.note(note)
    source = obtain_source(sweep.teacher, sweep.task, splits, paths, sweep.seed)
    sources = student_sources(sweep.students, source, splits, sweep.task, paths, sweep.seed)
    checkpoints = {name: of.model.key for name, of in sources.items() if name is not None}
    for note in comparable_trials(sweep, paths, ledger, splits.key, source.key, checkpoints):
        screen.note(note)

    with opening as slots, tracked(sweep, paths, ledger, screen.note) as tracker:
        screen.stage("Teacher")
        teacher = obtain_teacher(
            sweep.teacher, source, sweep.task, sources[None].tokens, paths, sweep.seed, slots, epochs_on(screen, sweep)
        )
        screen.stage("Transfer set")
        transfer = obtain_transfer_set(
            sweep.transfer, teacher, sources[None].tokens, paths, slots,
            lambda done, shards: screen.progress("shards labelled", done, shards), screen.note,
        )  # fmt: skip
        validation = transfer.rows(sources[None].tokens, "validation")
        check_quality(sweep.teacher, transfer.logits("validation").all(), validation.labels, splits.labels)
        lessons = {name: Lesson(sweep.task, of.model, of.tokens, transfer) for name, of in sources.items()}
        lessons[None] = replace(lessons[None], source=teacher)

        screen.stage("Costs of each architecture")
        slots.wait()  # one that is still starting would disturb the clock
        costs = measure_costs(
            sweep.students, sources, sweep.latency, paths, slots,
            lambda done, of: screen.progress("architectures", done, of), begun_on(paths, ledger),
        )  # fmt: skip
        taught = sweep.task.metrics(transfer.logits("validation").all(), validation.labels)
        write_json(paths.conditions, {"costs": costs.conditions, "machine": costs.machine})
        write_json(paths.lineage, lineage(sweep, splits, teacher))
        write_json(paths.teacher_figures, taught | costs.teacher)
        tracker.sweep(
            metrics={f"teacher.{name}": value for name, value in (taught | costs.teacher).items()},
            tags={"kdray.measured": costs.conditions},
        )

        screen.stage("Search")
        study = Study(
            sweep.search, sweep.space, ledger,
            costs=lambda params: costs.of(sweep.recipe_of(params).student),
            evaluations=lambda params: sweep.recipe_of(params).training.evaluations(len(splits.train)),
        )  # fmt: skip
        if study.unheeded:
            screen.note(f"{study.unheeded} of those trials break a constraint here: the sampler leaves them out.")
        keeper = Keeper(sweep, paths, ledger, tracker, screen)
        search(slots, study, lambda number, params: trial(sweep, lessons, paths, number, params), keeper.take)
        keeper.clear_up()

        again = Retraining(sweep, paths, ledger, lessons, slots, tracker, screen)
        controls: list[Control] = []
        if sweep.confirm.controls:
            screen.stage("Controls")
            controls = again.controls()
        verdict = None
        if sweep.confirm.candidates:
            screen.stage("Confirmation")
            verdict = again.verdict()

        screen.stage("Choice")
        figures = choose(sweep, paths, ledger, controls, verdict)
        ship(sweep, paths, lessons, slots, figures, tracker)
        write_report(figures_of(paths), paths.report)
        tracker.log_artifacts(paths.report, "report")
    uri = sweep.tracking.uri or ""
    return Outcome(
        paths, figures_of(paths), tracker.page(), masked(uri) if uri.startswith("http") else None,
        registered(sweep.tracking, paths, ledger, screen),
    )  # fmt: skip


def trial(
    sweep: Sweep, lessons: Mapping[str | None, Lesson], paths: SweepPaths, number: int, params: Mapping[str, Any]
) -> Trial:
    """The trial with these searched settings. All trials of a sweep share its seed: they see the same batches."""
    recipe = sweep.recipe_of(params)
    return Trial(recipe, lessons[recipe.student.checkpoint], sweep.seed, paths.student(number))


@contextmanager
def slots_for(
    sweep: Sweep, paths: SweepPaths, screen: Screen, address: str | None, require_cluster: bool, local: bool
) -> Iterator[SlotPool]:
    """The slots of the sweep: in this process, or on the Ray that was joined or started."""
    if local:
        with LocalSlots(threads=max(1, int(sweep.slots.cpus or os.cpu_count() or 1))) as slots:  # as one Ray slot has
            yield slots
        return
    cluster = connect(address, require_cluster, paths.logs, screen.note)
    try:
        screen.note(cluster.sentence)
        with open_slots(sweep.slots, paths.logs, paths.owner, screen.note) as ray_slots:
            yield ray_slots
    finally:
        cluster.close()


def lineage(sweep: Sweep, splits: Splits, teacher: Pretrained) -> dict[str, str]:
    """What the sweep's students come from, by content and by name."""
    return {
        "teacher": sweep.teacher.called, "teacher_weights": teacher.key,
        "data": splits.key, "test_rows": splits.content("test"),
    }  # fmt: skip


def begun_on(paths: SweepPaths, ledger: Ledger) -> dict[str, str] | None:
    """What the costs of the sweep's trials were measured on; None before the first of them."""
    machine: dict[str, str] | None = read_json(paths.conditions).get("machine") if paths.conditions.exists() else None
    return machine if len(ledger) else None


def sizes(splits: Splits) -> str:
    """What the sweep learns from and is measured on, in a sentence."""
    rows = (
        f"{len(splits.train):,} rows to train on, {len(splits.validation):,} to validate, {len(splits.test):,} to test"
    )
    return f"{rows}; labels {', '.join(splits.labels)}"


def epochs_on(screen: Screen, sweep: Sweep) -> Callable[[Report], None]:
    """Shows the teacher's epochs on the screen."""
    epochs = sweep.teacher.training.epochs if sweep.teacher.training else 0
    quality = sweep.task.metric_names(2)[0]

    def show(report: Report) -> None:
        if report.keys() == {NOTE}:
            screen.note(report[NOTE])
            return
        screen.progress(f"epochs of the teacher ({quality} {report[quality]:.4f})", report["epoch"], epochs)

    return show
