"""A thousand trials with almost no work: no report is lost, and the driver does not use more and more memory."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle

from kdray.evaluation.trial_record import TrialRecord
from kdray.search.ledger import Ledger
from kdray.search.planner import Length, Planner
from kdray.search.run_search import run_search
from kdray.search.settings import Search
from kdray.search.space import SearchSpace
from kdray.slots.cluster import connect
from kdray.slots.job import Report, Worker
from kdray.slots.pool import SlotSettings
from kdray.slots.ray_slots import open_slots

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file
pytestmark = [pytest.mark.faults, pytest.mark.slow]

TRIALS = 1000


@dataclass(frozen=True)
class EmptyTrial:
    """A job with two evaluations and no training; the accuracy follows from the number."""

    number: int

    def __call__(self, worker: Worker) -> Iterator[Report]:
        for epoch in (1, 2):
            yield {"accuracy": self.number / TRIALS, "epoch": epoch, "step": epoch}


@dataclass(frozen=True)
class ProcessSize:
    """The resources that this process uses."""

    resident_mb: float
    threads: int
    open_files: int

    @classmethod
    def now(cls) -> "ProcessSize":
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        files = len(list(Path("/proc/self/fd").iterdir()))
        return cls(int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), files)


def test_a_thousand_trials_lose_no_report_and_the_driver_needs_no_more_memory(tmp_path: Path) -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    info = connect("local", False, tmp_path / "logs")
    ledger = Ledger.open(tmp_path / "journal.log", "many", ("accuracy",))
    search = Search(trials=TRIALS, objectives=("accuracy",), sampler="random", stopping=None)
    space = {"distillation.alpha": [0.1, 0.5, 0.9]}
    planner = Planner(search, SearchSpace(space), ledger, costs=lambda params: {}, length=lambda params: Length(2))
    sizes: dict[int, ProcessSize] = {}

    def watch(record: TrialRecord) -> None:
        if record.state != "running" and record.number in (100, TRIALS - 1):
            sizes[record.number] = ProcessSize.now()

    def make_job(number: int, params: dict[str, Any]) -> EmptyTrial:
        return EmptyTrial(number)

    try:
        with open_slots(SlotSettings(count=2, cpus=1), tmp_path / "logs") as pool:
            run_search(pool, planner, make_job, watch)
    finally:
        info.close()
    records = Ledger.read(tmp_path / "journal.log", "many").records()
    assert [record.number for record in records] == list(range(TRIALS))
    for record in records:
        assert record.state == "completed"
        assert [(row["accuracy"], row["epoch"]) for row in record.history] == [
            (record.number / TRIALS, epoch) for epoch in (1, 2)
        ]
    early, late = sizes[100], sizes[TRIALS - 1]
    assert late.resident_mb <= 1.2 * early.resident_mb, (early, late)
    assert late.threads <= early.threads + 4, (early, late)
    assert late.open_files <= early.open_files + 4, (early, late)
