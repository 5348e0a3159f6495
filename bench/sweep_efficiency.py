"""Claim: in a sweep, 90 % of the slots' time is training and evaluation.

Efficiency is the sum of train_seconds and eval_seconds of all trials in the ledger / (slots x wall time), from the
start of the first trial to the end of the last one. For a sweep that this script runs itself, it also prints the
efficiency of the whole sweep, from the start of Ray to the report, the time of each stage, and the number of cores
that the driver used (`driver_cores`), which on a small machine are missing for the slots.

    python bench/sweep_efficiency.py --data DIR --columns text,label --teacher DIR --epochs 3   (about 45 minutes)
    python bench/sweep_efficiency.py                            generated data                   (about 4 minutes)
    python bench/sweep_efficiency.py --sweep STORAGE/NAME       a finished sweep without interruption (at once)
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from machine import machine, print_result
from material import parser, sweep

from kdray import Sweep
from kdray.evaluation.trial_record import TrialRecord
from kdray.report.screen import NullScreen
from kdray.run import RunOptions, run
from kdray.stages.reading import read_figures
from kdray.storage.paths import SweepPaths


class Stages(NullScreen):
    """A screen that records when each stage began, and prints nothing."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}

    def stage(self, text: str) -> None:
        self.began[text] = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """The seconds of each stage; the last stage lasts until now."""
        ends = [*self.began.values(), time.perf_counter()][1:]
        return {name: end - began for (name, began), end in zip(self.began.items(), ends, strict=True)}


def pure_seconds(record: TrialRecord) -> float:
    """The seconds in which a trial trained and was evaluated."""
    return sum(metrics["train_seconds"] + metrics["eval_seconds"] for metrics in record.history)


def most_at_once(records: Sequence[TrialRecord]) -> int:
    """The largest number of trials that ran at the same time: the number of slots."""
    return max(sum(other.started <= record.started < other.ended for other in records) for record in records)


def search_figures(records: Sequence[TrialRecord]) -> dict[str, float]:
    """The figures of the search alone."""
    wall = max(record.ended for record in records) - min(record.started for record in records)
    busy, slots = sum(map(pure_seconds, records)), most_at_once(records)
    states = [record.state for record in records]
    return {
        "efficiency": busy / (slots * wall),
        "slots": slots,
        "search_s": wall,
        "pure_s": busy,
        "lost_s_per_trial": (slots * wall - busy) / len(records),
        "trials_per_hour": 3600 * len(records) / wall,
        **{state: states.count(state) for state in ("completed", "stopped", "failed")},
    }


def whole_figures(settings: Sweep, paths: SweepPaths) -> dict[str, object]:
    """Run the sweep, and return the figures that are known only for a sweep that runs in this process."""
    stages, cpu = Stages(), time.process_time()
    run(settings, paths, RunOptions(address="local"), screen=stages)
    stage_seconds, cpu = stages.seconds(), time.process_time() - cpu
    busy = sum(map(pure_seconds, read_figures(paths).records))
    slots = most_at_once(read_figures(paths).records)
    whole = sum(stage_seconds.values())
    return {
        "whole_s": whole,
        "whole_efficiency": busy / (slots * whole),
        "stages_s": stage_seconds,
        "driver_cores": cpu / whole,
    }


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--sweep", type=Path, help="STORAGE/NAME of a finished sweep")
    options, on = command.parse_args(), machine()
    with tempfile.TemporaryDirectory(prefix="kdray-bench-") as name:
        if options.sweep:
            paths, whole = SweepPaths(options.sweep.absolute().parent, options.sweep.name), {}
        else:
            settings = sweep(options)
            paths = SweepPaths(Path(name), settings.name)
            whole = whole_figures(settings, paths)
        figures = read_figures(paths)
    found = search_figures(figures.records)
    print_result(
        "efficiency of a sweep: training and evaluation / (slots x wall), over the search",
        found.pop("efficiency"),
        {
            "goal": 0.9,
            **found,
            **whole,
            "teacher_accuracy": figures.teacher["accuracy"],
            "data": options.data or ("of the sweep" if options.sweep else "generated"),
            "epochs": "of the sweep" if options.sweep else options.epochs,
        },
        on,
    )


if __name__ == "__main__":
    main()
