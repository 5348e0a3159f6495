"""Claim: a sweep of 10,000 trials whose driver was killed draws its next trial within 10 s.

The time begins when the driver opens the ledger. The ledger has so many trials with three evaluations each; it is
written without waiting for the disk. `open_s` is the time to check and read it, `planner_s` to give all trials to the
sampler and to early stopping, `draw_s` to draw the next trial with TPE. `memory_mb` is the memory that all of it needs.
Beside it, Optuna reads the same file with `load_study` and `get_trials`. The ratio is the time until the next trial /
the time that Optuna takes to read the file.

    python bench/ledger_replay.py [--trials 10000]                                             (about 1 minute)
"""

import argparse
import os
import random
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import material
import psutil
from machine import machine, print_result
from optuna import load_study
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from kdray import Search
from kdray.search.ledger import Ledger
from kdray.search.planner import Length, Planner
from kdray.search.space import distributions
from kdray.search.stopping import Halving

NAME, EVALUATIONS = "bench", 3


def evaluation(number: int, quality: float) -> dict[str, float]:
    """The metrics of an evaluation, as many as a real trial has."""
    names = ("agreement", "loss", "macro_f1", "train_loss", "learning_rate", "train_seconds", "eval_seconds")
    return {"accuracy": quality, "epoch": number, "step": 100 * number, **dict.fromkeys(names, 0.123456789012345)}


def write_ledger(path: Path, trials: int, objectives: tuple[str, ...]) -> None:
    """Write a ledger with so many completed trials."""
    space = material.sweep(material.parser("").parse_args([])).search_space
    domains, invented = distributions(space.domains), random.Random(0)
    with patch.object(os, "fsync", lambda file: None):
        ledger = Ledger.open(path, NAME, objectives)
        for _ in range(trials):
            params = {
                "student.depth": invented.randint(1, 3),
                "distillation.temperature": invented.uniform(1, 8),
                "distillation.alpha": invented.uniform(0.3, 1),
                "training.learning_rate": invented.uniform(5e-5, 4e-4),
            }
            number = ledger.add(params, domains, material.invented_costs(params), {}).number
            for evaluated in range(1, EVALUATIONS + 1):
                ledger.add_evaluation(number, evaluation(evaluated, invented.random()))
            ledger.finish(number, "completed")
            ledger.set_run_id(number, f"{number:032x}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    options, on, process = parser.parse_args(), machine(), psutil.Process()
    search = Search(trials=options.trials + 1, sampler="tpe", objectives=("accuracy", "latency_ms"), stopping=Halving())
    space = material.sweep(material.parser("").parse_args([])).search_space
    with tempfile.TemporaryDirectory(prefix="kdray-bench-") as folder:
        path = Path(folder) / "journal.log"
        write_ledger(path, options.trials, search.objectives)
        before, start = process.memory_info().rss, time.perf_counter()
        ledger = Ledger.open(path, NAME, search.objectives)
        opened = time.perf_counter()
        planner = Planner(search, space, ledger, material.invented_costs, lambda params: Length(EVALUATIONS))
        planned = time.perf_counter()
        trial = planner.next_trial()
        drawn, memory = time.perf_counter(), process.memory_info().rss - before
        assert trial
        assert trial.number == options.trials
        optuna_start = time.perf_counter()
        known = load_study(storage=JournalStorage(JournalFileBackend(str(path))), study_name=NAME).get_trials()
        optuna_s = time.perf_counter() - optuna_start
        assert len(known) == options.trials + 1
        print_result(
            "the time until a sweep that was killed draws its next trial, against Optuna's reading of the same file",
            (drawn - start) / optuna_s,
            {
                "next_trial_s": drawn - start,
                "goal_s": 10.0,
                "open_s": opened - start,
                "planner_s": planned - opened,
                "draw_s": drawn - planned,
                "optuna_s": optuna_s,
                "memory_mb": memory / 1e6,
                "file_mb": path.stat().st_size / 1e6,
                "trials": options.trials,
            },
            on,
        )


if __name__ == "__main__":
    main()
