"""A sweep in a process of its own that tests can break, and the checks that must hold after the sweep."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
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
CLOCK_METRICS = ("examples_per_s", "train_seconds", "eval_seconds")
STATUS = {"completed": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
"""State of a trial -> status of its run in MLflow."""
NAME = "faulty"
"""The name of the sweep in SWEEP."""

SWEEP = """
from ray import tune
from kdray import Confirm, Data, Halving, Latency, Search, Sweep, Teacher, TextClassification, Training, Transfer, main

sweep = Sweep(
    name="faulty",
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


def wait_for(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """Wait until the condition gives a true value, and return that value. Fails after `limit_s`."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {limit_s} s: {what}")


@dataclass
class SweepProcess:
    """A sweep that is run by a driver process of its own, which a test may start several times."""

    script: Path
    storage: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    """The value of the environment variable KDRAY_TEST, by which all processes of this sweep are found."""
    driver: subprocess.Popen[str] | None = None
    recoveries: list[float] = field(default_factory=list)
    """The seconds from each fault, or from the command that continues after it, until the training continued."""

    @property
    def folder(self) -> Path:
        """The working directory of the driver."""
        return self.script.parent

    @property
    def paths(self) -> SweepPaths:
        return SweepPaths(self.storage, NAME)

    def start(self, *arguments: str, slots: int = 2, **environment: str) -> subprocess.Popen[str]:
        """Start the driver; its output goes to a file."""
        command = [sys.executable, str(self.script), "--storage", str(self.storage), "--address", "local"]
        command += ["--set", f"slots.count={slots}", "--set", "slots.cpus=1", *arguments]
        variables = {**os.environ, "KDRAY_TEST": self.mark, **environment}
        continues = self.driver is not None
        with (self.folder / "output.txt").open("a") as output:
            self.driver = subprocess.Popen(
                command, stdout=output, stderr=output, text=True, cwd=self.folder, env=variables
            )
        if continues:
            self.watch_recovery()
        return self.driver

    def end(self, expected: int = 0) -> None:
        """Wait until the driver ends, and check its exit code."""
        assert self.driver is not None
        assert self.driver.wait(LIMIT_S) == expected, self.output

    def run(self, *arguments: str, expected: int = 0, slots: int = 2, **environment: str) -> None:
        """Start the driver, and wait until it ends with the expected exit code."""
        self.start(*arguments, slots=slots, **environment)
        self.end(expected)

    @property
    def output(self) -> str:
        """The output of all drivers so far."""
        return (self.folder / "output.txt").read_text()

    def records(self) -> list[TrialRecord]:
        """The trials in the ledger now."""
        try:
            return Ledger.read(self.paths.journal, NAME).records()
        except (KDRayError, OSError):
            return []

    def processes(self, name: str = "") -> list[int]:
        """The ids of the running processes of this sweep whose command line contains this name."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                is_ours = f"KDRAY_TEST={self.mark}".encode() in (process / "environ").read_bytes()
                if is_ours and name in (process / "cmdline").read_text():
                    found.append(int(process.name))
            except OSError:
                continue
        return sorted(found)

    def wait_for_running_trial(self) -> TrialRecord:
        """Wait for a trial that has been evaluated and has not ended."""
        return wait_for(
            lambda: next((record for record in self.records() if record.state == "running" and record.history), None),
            "a running trial with an evaluation",
        )

    def kill(self, name: str, signal_: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to the first process with this name."""
        pid = wait_for(lambda: self.processes(name), f"a process {name}")[0]
        os.kill(pid, signal_)
        self.watch_recovery()
        return pid

    def watch_recovery(self) -> None:
        """Record the time from now until each running trial has been evaluated again, or has ended."""
        start, driver = time.monotonic(), self.driver
        evaluations = {record.number: len(record.history) for record in self.records() if record.state == "running"}

        def watch() -> None:
            while driver is not None and driver.poll() is None:
                now = {record.number: record for record in self.records()}
                if all(now[n].state != "running" or len(now[n].history) > count for n, count in evaluations.items()):
                    self.recoveries.append(time.monotonic() - start)
                    return
                time.sleep(0.1)

        if evaluations:
            threading.Thread(target=watch, daemon=True).start()

    def assert_sound(self, states: list[str] | None = None) -> None:
        """Check that every trial has ended once, that MLflow agrees with the ledger, and that nothing is left."""
        records = self.records()
        assert [record.number for record in records] == list(range(len(records)))
        assert [record.state for record in records] == (states or ["completed"] * 6)
        for record in records:
            steps = [metrics["step"] for metrics in record.history]
            assert steps == sorted(set(steps))
        self.assert_mlflow_has(records)
        self.assert_nothing_left()

    def assert_mlflow_has(self, records: list[TrialRecord]) -> None:
        """Check that each trial has one run below the sweep's run, with the last metrics of the ledger."""
        client = MlflowClient(f"sqlite:///{self.storage / 'mlflow.db'}")
        (experiment,) = (each for each in client.search_experiments() if each.name == "kdray")
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

    def assert_nothing_left(self) -> None:
        """Check that no process, no incomplete file and no checkpoint is left."""
        wait_for(lambda: not self.processes(), "all processes have ended")
        leftovers = [path for path in self.storage.rglob("*") if path.name.startswith((".", "checkpoint"))]
        assert not leftovers


def without_clock_metrics(records: Sequence[TrialRecord]) -> list[Any]:
    """The rows of a table, without the metrics that depend on the clock."""
    return [
        (
            record.number,
            record.params,
            record.state,
            [{name: value for name, value in row.items() if name not in CLOCK_METRICS} for row in record.history],
        )
        for record in records
    ]
