"""Claim: in a sweep, 90 % of the slots' time is training and evaluation.

Efficiency = sum over the trials of the train_seconds and eval_seconds in the ledger's histories / (slots x wall), over
the search, from the first trial's start to the last one's end. Of a sweep that this script runs itself it also tells
the efficiency over everything, from starting Ray to the report, with the time of each stage, and how much of a
processor the driver took, which on a small machine the slots do without (`driver_cores`).

    python bench/sweep_efficiency.py --data DIR --columns text,label --teacher DIR --epochs 3   (about 45 minutes)
    python bench/sweep_efficiency.py                            generated data                   (about 4 minutes)
    python bench/sweep_efficiency.py --sweep STORAGE/NAME       one that has finished, in one go (at once)
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from machine import machine, say
from material import parser, sweep

from kdray import Sweep
from kdray.evaluation.trial_record import TrialRecord
from kdray.report.screen import NullScreen
from kdray.run import RunOptions, run
from kdray.stages.reading import read_figures
from kdray.storage.paths import SweepPaths


class Stages(NullScreen):
    """A screen that only notes when each stage began."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}

    def stage(self, text: str) -> None:
        self.began[text] = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """How long each stage took; the last one up to now."""
        ends = [*self.began.values(), time.perf_counter()][1:]
        return {name: end - began for (name, began), end in zip(self.began.items(), ends, strict=True)}


def pure_seconds(record: TrialRecord) -> float:
    """In which a trial trained and was evaluated."""
    return sum(metrics["train_seconds"] + metrics["eval_seconds"] for metrics in record.history)


def most_at_once(records: Sequence[TrialRecord]) -> int:
    """The largest number of trials that ran at the same time: the slots."""
    return max(sum(other.started <= record.started < other.ended for other in records) for record in records)


def search_figures(records: Sequence[TrialRecord]) -> dict[str, float]:
    """Of the search alone."""
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


def whole_figures(asked: Sweep, paths: SweepPaths) -> dict[str, object]:
    """Run the sweep; what can be told only of one's own."""
    stages, cpu = Stages(), time.process_time()
    run(asked, paths, RunOptions(address="local"), screen=stages)
    took, cpu = stages.seconds(), time.process_time() - cpu
    busy = sum(map(pure_seconds, read_figures(paths).records))
    slots = most_at_once(read_figures(paths).records)
    whole = sum(took.values())
    return {
        "whole_s": whole,
        "whole_efficiency": busy / (slots * whole),
        "stages_s": took,
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
            asked = sweep(options)
            paths = SweepPaths(Path(name), asked.name)
            whole = whole_figures(asked, paths)
        figures = read_figures(paths)
    found = search_figures(figures.records)
    say(
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
