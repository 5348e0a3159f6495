"""A sweep in a process of its own that tests can break, and what must be true of it afterwards."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from kdray.errors import KDRayError
from kdray.evaluation.trial_record import TrialRecord
from kdray.search.ledger import Ledger
from kdray.storage.paths import SweepPaths

LIMIT_S = 180
TIMES = ("examples_per_s", "train_seconds", "eval_seconds")
STATUS = {"completed": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

SWEEP = """
from ray import tune
from kdray import Confirm, Data, Halving, Latency, Search, Sweep, Teacher, TextClassification, Training, Transfer, main

sweep = Sweep(
    name="night",
    data=Data(source={data!r}),
    teacher=Teacher(model={teacher!r}),
    task=TextClassification(max_length=16),
    transfer=Transfer(precision="fp32"),
    training=Training(epochs=3, batch_size=8, precision="fp32", checkpoint_evaluations=1),
    space={{"student.depth": [1, 2], "training.learning_rate": tune.loguniform(1e-4, 3e-3)}},
    confirm=Confirm(candidates=0, controls=False),
    search=Search(trials=6, sampler="random", stopping=None),
    latency=Latency(length=16, warmup=1, repeats=3),
)
if __name__ == "__main__":
    main(sweep)
"""


def until(true: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """The first true value; fails when there is none in time."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if value := true():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {limit_s} s: {what}")


@dataclass
class SweepProcess:
    """A sweep that is run by a process of its own, again and again."""

    script: Path
    storage: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    driver: subprocess.Popen[str] | None = None
    recoveries: list[float] = field(default_factory=list)
    """Seconds from each fault, or from the command that went on after it, until training went on."""

    @property
    def folder(self) -> Path:
        """Where the driver runs."""
        return self.script.parent

    @property
    def paths(self) -> SweepPaths:
        return SweepPaths(self.storage, "night")

    def begin(self, *arguments: str, slots: int = 2, **environment: str) -> subprocess.Popen[str]:
        """Start the driver; what it says goes to a file."""
        command = [sys.executable, str(self.script), "--storage", str(self.storage), "--address", "local"]
        command += ["--set", f"slots.count={slots}", "--set", "slots.cpus=1", *arguments]
        surroundings = {**os.environ, "KDRAY_TEST": self.mark, **environment}
        goes_on = self.driver is not None
        with (self.folder / "said.txt").open("a") as said:
            self.driver = subprocess.Popen(
                command, stdout=said, stderr=said, text=True, cwd=self.folder, env=surroundings
            )
        if goes_on:
            self.watch_recovery()
        return self.driver

    def end(self, expected: int = 0) -> None:
        """Wait for the driver's end."""
        assert self.driver is not None
        assert self.driver.wait(LIMIT_S) == expected, self.said

    def run(self, *arguments: str, expected: int = 0, slots: int = 2, **environment: str) -> None:
        self.begin(*arguments, slots=slots, **environment)
        self.end(expected)

    @property
    def said(self) -> str:
        return (self.folder / "said.txt").read_text()

    def records(self) -> list[TrialRecord]:
        """What the ledger holds now."""
        try:
            return Ledger.read(self.paths.journal, "night").records()
        except (KDRayError, OSError):
            return []

    def processes(self, name: str = "") -> list[int]:
        """The living processes of this sweep whose command line holds this name."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                ours = f"KDRAY_TEST={self.mark}".encode() in (process / "environ").read_bytes()
                if ours and name in (process / "cmdline").read_text():
                    found.append(int(process.name))
            except OSError:
                continue
        return sorted(found)

    def trial_in_its_middle(self, besides: tuple[int, ...] = ()) -> TrialRecord:
        """A trial that has been evaluated and has not ended."""
        return until(
            lambda: next(
                (r for r in self.records() if r.state == "running" and r.history and r.number not in besides), None
            ),
            "a trial in its middle",
        )

    def kill(self, name: str, signal_: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to the first process of this name."""
        pid = until(lambda: self.processes(name), f"a process {name}")[0]
        os.kill(pid, signal_)
        self.watch_recovery()
        return pid

    def watch_recovery(self) -> None:
        """Note how long it takes from now until each trial that runs has been evaluated again, or has ended."""
        began, driver = time.monotonic(), self.driver
        before = {record.number: len(record.history) for record in self.records() if record.state == "running"}

        def watch() -> None:
            while driver is not None and driver.poll() is None:
                now = {record.number: record for record in self.records()}
                if all(now[n].state != "running" or len(now[n].history) > seen for n, seen in before.items()):
                    self.recoveries.append(time.monotonic() - began)
                    return
                time.sleep(0.1)

        if before:
            threading.Thread(target=watch, daemon=True).start()

    def is_sound(self, states: list[str] | None = None) -> None:
        """Every trial has ended once, MLflow has what the ledger has, and nothing is left over."""
        records = self.records()
        assert [record.number for record in records] == list(range(len(records)))
        assert [record.state for record in records] == (states or ["completed"] * 6)
        for record in records:
            steps = [metrics["step"] for metrics in record.history]
            assert steps == sorted(set(steps))
        self.mlflow_has(records)
        self.nothing_is_left()

    def mlflow_has(self, records: list[TrialRecord]) -> None:
        """One finished run a trial, whose last metrics are the ledger's, under one run of the sweep."""
        client = MlflowClient(f"sqlite:///{self.storage / 'mlflow.db'}")
        (experiment,) = (e for e in client.search_experiments() if e.name == "kdray")
        runs = client.search_runs([experiment.experiment_id], max_results=1000)
        (parent,) = (run for run in runs if "kdray.trial" not in run.data.tags)
        assert parent.info.status == "FINISHED"
        children = sorted((run for run in runs if run is not parent), key=lambda run: int(run.data.tags["kdray.trial"]))
        assert [int(run.data.tags["kdray.trial"]) for run in children] == [record.number for record in records]
        for run, record in zip(children, records, strict=True):
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
            assert run.info.status == STATUS[record.state]
            assert run.info.run_id == record.run_id
            last = record.history[-1] if record.history else {}
            for name, value in last.items():
                assert name == "step" or run.data.metrics[name] == pytest.approx(value), (record.number, name)

    def nothing_is_left(self) -> None:
        """No process, no half-written file, no checkpoint."""
        until(lambda: not self.processes(), "all processes have ended")
        left = [path for path in self.storage.rglob("*") if path.name.startswith((".", "checkpoint"))]
        assert not left


def numbers(records: list[TrialRecord]) -> list[Any]:
    """All of a table but what a clock says."""
    return [
        (r.number, r.params, r.state, [{k: v for k, v in metrics.items() if k not in TIMES} for metrics in r.history])
        for r in records
    ]
