"""Claim: a trial on a warm slot costs at most 0.1 s beside its own work; the nesting that Ray documents costs seconds.

Warm: `kdray.search` runs 100 empty trials (one report each) on one slot, with Ray Tune, Optuna, the ledger, the board
and the worker. `slot_s` is the time of the board and the worker alone. Nested: the same empty trial in the way that
Ray documents, with a TorchTrainer.fit() of one worker in each Tune trial, one trial after the other. Neither figure
contains the start of Ray and of the slot; `slot_start_s` is the time for the start of the slot, once a sweep.

    python bench/trial_overhead.py [--trials 100] [--nested 4]                                  (about 2 minutes)
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import machine, print_result
from ray import train, tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from kdray.search.ledger import Ledger
from kdray.search.planner import Planner
from kdray.search.settings import Search
from kdray.search.space import SearchSpace
from kdray.search.tune_driver import run_with_tune
from kdray.slots.cluster import connect
from kdray.slots.job import Report, Worker
from kdray.slots.pool import SlotSettings
from kdray.slots.ray_slots import RaySlots, open_slots


@dataclass(frozen=True)
class Empty:
    """A trial without work: one report."""

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield {"accuracy": 0.5, "epoch": 1, "step": 1}


def warm_seconds(slots: RaySlots, trials: int, folder: Path) -> float:
    """The seconds of one trial, with all parts of the search."""
    settings = Search(trials=trials, objectives=("accuracy",), sampler="random", stopping=None)
    planner = Planner(
        settings,
        SearchSpace({"x": tune.uniform(0, 1)}),
        Ledger.open(folder / "journal", "warm", ("accuracy",)),
        costless,
    )
    started = time.perf_counter()
    run_with_tune(slots, planner, lambda number, params: Empty(), lambda record: None)
    assert all(record.state == "completed" for record in planner.records())
    return (time.perf_counter() - started) / trials


def costless(params: Any) -> dict[str, float]:
    return {}


def slot_seconds(slots: RaySlots, jobs: int) -> float:
    """The seconds of one job, from its submission to its end."""
    started = time.perf_counter()
    for number in range(jobs):
        assert len(list(slots.run(Empty(), f"empty-{number}"))) == 1
    return (time.perf_counter() - started) / jobs


def nested_trial(config: dict[str, Any]) -> None:
    """A Tune trial that runs a trainer of its own, as Ray documents."""
    TorchTrainer(
        lambda: train.report({"accuracy": 0.5}),
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(storage_path=config["folder"], callbacks=[TuneReportCallback()]),
    ).fit()


def nested_seconds(trials: int, folder: Path) -> float:
    """The seconds of one trial that runs a trainer of its own."""
    started = time.perf_counter()
    results = tune.Tuner(
        tune.with_resources(nested_trial, {"CPU": 0.01}),
        param_space={"x": tune.uniform(0, 1), "folder": str(folder)},
        tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    ).fit()
    assert not results.errors, results.errors[0]
    return (time.perf_counter() - started) / trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--nested", type=int, default=4, help="number of trials with a trainer of their own")
    options, on = parser.parse_args(), machine()
    with tempfile.TemporaryDirectory(prefix="kdray-bench-") as name:
        folder = Path(name)
        cluster = connect("local", False, folder / "logs")
        started = time.perf_counter()
        with open_slots(SlotSettings(count=1, cpus=1), folder / "logs") as slots:
            slots.wait()
            start = time.perf_counter() - started
            warm, slot = warm_seconds(slots, options.trials, folder), slot_seconds(slots, options.trials)
        with redirect_stdout(sys.stderr):  # Tune prints whatever `verbose` says
            nested = nested_seconds(options.nested, folder / "nested")
        cluster.close()
    print_result(
        "overhead of a trial on a warm slot, against a TorchTrainer.fit() nested in a Tune trial (times less)",
        nested / warm,
        {
            "warm_s": warm,
            "goal_s": 0.1,
            "nested_s": nested,
            "slot_s": slot,
            "slot_start_s": start,
            "trials": options.trials,
            "nested_trials": options.nested,
        },
        on,
    )


if __name__ == "__main__":
    main()
