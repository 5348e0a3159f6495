"""Claim: 1,000 trials without work cost at most 15 ms of the driver's processor time each; its memory does not grow.

The driver has all parts that it has in `kdray run`: Ray Tune, Optuna's sampler, the ledger, MLflow, the board, two
slots. Only the trials are empty (one report each). `driver_cpu_s` is its processor time for one trial; `sender_cpu_s`
is the part of it that the thread takes which sends the runs to MLflow, up to the last trial. `last_tenth` shows whether
the time grows. Memory is that of the driver, at trial 100 and at the last trial.

The lower limit is Ray Tune alone, with empty functions, random settings, reused actors and without its file loggers: no
driver on Tune can be faster. Its trials have lanes as those of kdray, because on a busy machine Tune otherwise starts a
process for nearly each short trial. It ends after `--tune-limit-s` at the latest; `tune_alone_trials` says how many
trials it had until then. The ratio is the processor time of a trial of kdray's driver / that of Tune alone. Processor
time changes less than `trial_s` when other programs run.

    python bench/empty_trials.py [--trials 1000] [--tune-trials 300]                             (about 2 minutes)
"""

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import material
import psutil
import ray
from machine import machine, print_result
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from kdray import Search, Sweep
from kdray.evaluation.trial_record import TrialRecord
from kdray.report.screen import NullScreen, StageTimer
from kdray.search.ledger import Ledger
from kdray.search.planner import Planner
from kdray.search.tune_driver import _lane_resources, run_with_tune
from kdray.slots.cluster import connect
from kdray.slots.job import Report, Worker
from kdray.slots.pool import SlotSettings
from kdray.slots.ray_internals import keep_one_more_actor
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
    sender_cpu_s: float = 0.0
    """Processor time of the thread that sends to MLflow."""

    def take(self, record: TrialRecord) -> None:
        if record.state != "running":
            self.wall_s.append(time.perf_counter())
            self.cpu_s.append(time.process_time())
            self.rss_mb.append(self.process.memory_info().rss / 1e6)

    def take_sender(self) -> None:
        """Measure the thread that sends to MLflow; it is alive until the sweep ends."""
        ids = {thread.native_id for thread in threading.enumerate() if thread.name == "kdray-tracking"}
        times = [thread for thread in self.process.threads() if thread.id in ids]
        self.sender_cpu_s = sum(thread.user_time + thread.system_time for thread in times)


def search_empty_trials(sweep: Sweep, paths: SweepPaths, slots: RaySlots) -> Watch:
    """Run the empty trials with all parts that `kdray.run` has, and return what was measured at each."""
    ledger, watch = Ledger.open(paths.journal, sweep.name, sweep.search.objectives), Watch()
    with open_sweep_run(sweep, paths, ledger, lambda sentence: None, own_process=True) as tracker:
        planner = Planner(sweep.search, sweep.search_space, ledger, material.invented_costs)
        screen = StageTimer(NullScreen(), paths.times)
        bookkeeper = Bookkeeper(Session(sweep, paths, ledger, screen, slots, tracker))

        def changed(record: TrialRecord) -> None:
            bookkeeper.update(record)
            watch.take(record)

        run_with_tune(slots, planner, lambda number, params: Empty(params["distillation.alpha"]), changed)
        watch.take_sender()
    assert all(record.state == "completed" for record in ledger.records())
    return watch


class LaneSearcher(Searcher):
    """Suggests random settings, and a free lane, so many times."""

    def __init__(self, trials: int, lanes: int) -> None:
        super().__init__(metric="accuracy", mode="max")
        self.ended = 0
        self._left, self._random = trials, random.Random(0)
        self._free, self._lanes = set(range(lanes)), dict[str, int]()

    def suggest(self, trial_id: str) -> Any:
        """See Searcher."""
        if not self._left:
            return Searcher.FINISHED
        if not self._free:
            return None
        self._left -= 1
        self._lanes[trial_id] = self._free.pop()
        return {"x": self._random.random(), "lane": self._lanes[trial_id]}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """See Searcher."""
        self._free.add(self._lanes.pop(trial_id))
        self.ended += 1

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...


class LaneScheduler(FIFOScheduler):
    """Lets Tune keep one actor for each lane."""

    def __init__(self) -> None:
        super().__init__()
        self._lanes: set[Any] = set()

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """See TrialScheduler."""
        if (lane := trial.placement_group_factory) not in self._lanes:
            self._lanes.add(lane)
            keep_one_more_actor(tune_controller, lane)


@dataclass(frozen=True)
class TuneAlone:
    """What Ray Tune alone took for one trial."""

    trials: int
    wall_s: float
    cpu_s: float
    """Processor time of this process."""


def run_tune_alone(trials: int, lanes: int, limit_s: float, folder: Path) -> TuneAlone:
    """Run empty trials with Ray Tune alone, for at most so many seconds."""
    searcher = LaneSearcher(trials, lanes)
    resources = partial(_lane_resources, f"node:{ray.util.get_node_ip_address()}")
    started, cpu = time.perf_counter(), time.process_time()
    tune.Tuner(
        tune.with_resources(lambda config: tune.report({"accuracy": config["x"]}), resources),
        tune_config=tune.TuneConfig(
            search_alg=searcher, scheduler=LaneScheduler(), num_samples=-1, reuse_actors=True, time_budget_s=limit_s
        ),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0, callbacks=[]),
    ).fit()
    ended = max(1, searcher.ended)
    return TuneAlone(ended, (time.perf_counter() - started) / ended, (time.process_time() - cpu) / ended)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--tune-trials", type=int, default=300, help="number of trials of Ray Tune alone")
    parser.add_argument("--tune-limit-s", type=float, default=120, help="the most seconds that Ray Tune alone may take")
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
            alone = run_tune_alone(options.tune_trials, options.slots, options.tune_limit_s, Path(name) / "tune")
        cluster.close()
    early, last = min(EARLY, options.trials) - 1, options.trials - 1
    wall = (watch.wall_s[-1] - watch.wall_s[0]) / options.trials
    cpu = (watch.cpu_s[-1] - watch.cpu_s[0]) / options.trials
    late = max(1, options.trials // 10)
    print_result(
        "the driver's processor time of an empty trial in a whole sweep, against Ray Tune alone (times as long)",
        cpu / alone.cpu_s,
        {
            "driver_cpu_s": cpu,
            "goal_s": 0.015,
            "last_tenth_driver_cpu_s": (watch.cpu_s[-1] - watch.cpu_s[-1 - late]) / late,
            "sender_cpu_s": watch.sender_cpu_s / options.trials,
            "trial_s": wall,
            "last_tenth_trial_s": (watch.wall_s[-1] - watch.wall_s[-1 - late]) / late,
            "tune_alone_cpu_s": alone.cpu_s,
            "tune_alone_s": alone.wall_s,
            "tune_alone_trials": alone.trials,
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
