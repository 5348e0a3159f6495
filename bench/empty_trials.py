"""Claim: 1,000 trials without work cost at most 30 ms each, and the driver's memory does not grow.

The driver has all parts that it has in `kdray run`: Ray Tune, Optuna's sampler, the ledger, MLflow, the board, two
slots. Only the trials are empty (one report each). The lower limit is Ray Tune alone, with empty functions, random
search, reused actors and without its file loggers: no driver on Tune can be faster. The ratio is the seconds of a
trial of kdray / those of Tune alone. `driver_cpu_s` is the driver's processor time for one trial. Memory is that of
the driver, at trial 100 and at the last trial.

    python bench/empty_trials.py [--trials 1000] [--tune-trials 1000]                            (about 2 minutes)
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import material
import psutil
from machine import machine, print_result
from ray import tune

from kdray import Search, Sweep
from kdray.evaluation.trial_record import TrialRecord
from kdray.report.screen import NullScreen, StageTimer
from kdray.search.ledger import Ledger
from kdray.search.planner import Planner
from kdray.search.tune_driver import run_with_tune
from kdray.slots.cluster import connect
from kdray.slots.job import Report, Worker
from kdray.slots.pool import SlotSettings
from kdray.slots.ray_slots import RaySlots, open_slots
from kdray.stages.bookkeeping import Bookkeeper, open_sweep_run
from kdray.stages.session import Session
from kdray.storage.paths import SweepPaths

EARLY = 100
"""The trial at which memory is first measured: all modules are imported by then."""


@dataclass(frozen=True)
class Empty:
    """A trial without work: one report like that of a real trial, from which Optuna can learn."""

    x: float

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield {"accuracy": self.x, "retention": self.x, "loss": 1 - self.x, "epoch": 1, "step": 1}


@dataclass
class Watch:
    """The wall clock, processor time and memory of this process at the end of each trial."""

    process: psutil.Process = field(default_factory=psutil.Process)
    wall_s: list[float] = field(default_factory=lambda: [time.perf_counter()])
    cpu_s: list[float] = field(default_factory=lambda: [time.process_time()])
    rss_mb: list[float] = field(default_factory=list)

    def take(self, record: TrialRecord) -> None:
        if record.state != "running":
            self.wall_s.append(time.perf_counter())
            self.cpu_s.append(time.process_time())
            self.rss_mb.append(self.process.memory_info().rss / 1e6)


def costs(params: Any) -> dict[str, float]:
    """Invented costs: one millisecond for each layer."""
    return {"latency_ms": float(params["student.depth"]), "latency_p95_ms": 9.0, "parameters": 1e6, "size_mb": 4.0}


def search_empty_trials(sweep: Sweep, paths: SweepPaths, slots: RaySlots) -> Watch:
    """Run the empty trials with all parts that `kdray.run` has, and return what was measured at each."""
    ledger, watch = Ledger.open(paths.journal, sweep.name, sweep.search.objectives), Watch()
    with open_sweep_run(sweep, paths, ledger, lambda sentence: None) as tracker:
        planner = Planner(sweep.search, sweep.search_space, ledger, costs)
        screen = StageTimer(NullScreen(), paths.times)
        bookkeeper = Bookkeeper(Session(sweep, paths, ledger, screen, slots, tracker))

        def changed(record: TrialRecord) -> None:
            bookkeeper.update(record)
            watch.take(record)

        run_with_tune(slots, planner, lambda number, params: Empty(params["distillation.alpha"]), changed)
    assert all(record.state == "completed" for record in ledger.records())
    return watch


def tune_seconds(trials: int, at_once: int, folder: Path) -> float:
    """The seconds of one trial of Ray Tune alone."""
    started = time.perf_counter()
    tune.Tuner(
        tune.with_resources(lambda config: tune.report({"accuracy": config["x"]}), {"CPU": 0.01}),
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=at_once, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    ).fit()
    return (time.perf_counter() - started) / trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--tune-trials", type=int, default=1000, help="number of trials of Ray Tune alone")
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument(
        "--sampler", default="tpe", help="a sampler of Optuna; the time of a sampler grows with the number of trials"
    )
    options, on = parser.parse_args(), machine()
    search_settings = Search(trials=options.trials, sampler=options.sampler, stopping=None)
    with tempfile.TemporaryDirectory(prefix="kdray-bench-") as name:
        paths = SweepPaths(Path(name), "bench")
        sweep = material.sweep(material.parser("").parse_args([]), search_settings)
        cluster = connect("local", False, paths.logs)
        with open_slots(SlotSettings(count=options.slots, cpus=0.5), paths.logs) as slots:
            slots.wait()
            watch = search_empty_trials(sweep, paths, slots)
        with redirect_stdout(sys.stderr):  # Tune prints whatever `verbose` says
            alone = tune_seconds(options.tune_trials, options.slots, Path(name) / "tune")
        cluster.close()
    early, last = min(EARLY, options.trials) - 1, options.trials - 1
    wall = (watch.wall_s[-1] - watch.wall_s[0]) / options.trials
    late = max(1, options.trials // 10)
    print_result(
        "seconds of an empty trial in a whole sweep, against Ray Tune alone (times as long)",
        wall / alone,
        {
            "trial_s": wall,
            "goal_s": 0.03,
            "last_tenth_trial_s": (watch.wall_s[-1] - watch.wall_s[-1 - late]) / late,
            "driver_cpu_s": (watch.cpu_s[-1] - watch.cpu_s[0]) / options.trials,
            "tune_alone_s": alone,
            f"rss_mb_at_{early + 1}": watch.rss_mb[early],
            f"rss_mb_at_{last + 1}": watch.rss_mb[last],
            "growth_mb": watch.rss_mb[last] - watch.rss_mb[early],
            "trials": options.trials,
            "slots": options.slots,
            "sampler": options.sampler,
        },
        on,
    )


if __name__ == "__main__":
    main()
