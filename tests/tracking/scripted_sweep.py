"""A sweep without training: a real ledger and tracker with scripted trials; and a check of the runs in MLflow."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.distributions import IntDistribution

from kdray.evaluation.trial_record import State, TrialRecord
from kdray.search.ledger import Ledger
from kdray.storage.files import write_json
from kdray.storage.paths import SweepPaths
from kdray.tracking.ids import save_run_ids, sweep_run_id, tracked_sweep
from kdray.tracking.mlflow_tracker import open_tracker
from kdray.tracking.settings import Tracking
from kdray.tracking.tracker import Ending

SETTINGS = {"student.layers": "evenly", "training.epochs": 3}
STATUS = {"running": "RUNNING", "completed": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class ScriptedSweep:
    """One session of a sweep; a second session in the same folder continues it."""

    def __init__(self, paths: SweepPaths, tracking: Tracking) -> None:
        self.paths, self.said, self.longest_call_s = paths, list[str](), 0.0
        write_json(paths.settings, {"search": {"objectives": ["accuracy"]}, "space": {}})
        self.ledger = Ledger.open(paths.journal, paths.name, ["accuracy"])
        sweep = tracked_sweep(self.ledger)
        self.tracker = open_tracker(tracking, paths, sweep, self.said.append, own_process=True)
        self._timed(lambda: self.tracker.start_sweep({"search.trials": 3}, {}, sweep_run_id(self.ledger)))
        for record in self.ledger.records():
            self.tell(record)

    def trials(self, *numbers: int, state: State = "completed") -> None:
        """Run trials to their end, with two evaluations each; each evaluation counts as half a second of training."""
        for number in numbers:
            if number >= len(self.ledger):
                self.begin()
            self.evaluate(number, 10)
            self.evaluate(number, 20)
            self.finish(number, state)

    def begin(self) -> None:
        """Begin a trial."""
        depths = {"student.depth": IntDistribution(1, 4)}
        self.tell(self.ledger.add({"student.depth": 2}, depths, {"latency_ms": 1.5}, {}))

    def evaluate(self, number: int, step: int) -> None:
        """Add an evaluation to a trial."""
        metrics = {"epoch": step / 10, "step": float(step), "accuracy": 0.8 + step / 1000, "train_seconds": 0.5}
        self.tell(self.ledger.add_evaluation(number, metrics))

    def finish(self, number: int, state: State = "completed") -> None:
        """End a trial."""
        self.tell(self.ledger.finish(number, state, "it broke" if state == "failed" else None))

    def tell(self, record: TrialRecord) -> None:
        """Report the record to the tracker, as `Bookkeeper` does."""
        self._timed(lambda: self.tracker.trial(record, SETTINGS, {"kdray.task": "text_classification"}))
        save_run_ids(self.ledger, self.tracker.run_ids())

    def figures(self, folder: Path | None = None) -> None:
        """Report metrics and, optionally, a folder for the sweep's own run."""
        self._timed(lambda: self.tracker.sweep(metrics={"teacher.accuracy": 0.9}))
        if folder:
            self._timed(lambda: self.tracker.log_artifacts(folder, "report"))

    def end(self, ending: Ending = "finished") -> None:
        """End the session."""
        self.tracker.end_sweep(ending)
        save_run_ids(self.ledger, self.tracker.run_ids())

    def wait_until_sent(self, limit_s: float = 90) -> None:
        """Wait until the store has received everything."""
        wait_until(lambda: self.paths.spool.stat().st_size == 0, limit_s, "the spool was not emptied")

    def _timed(self, call: Callable[[], None]) -> None:
        start = time.monotonic()
        call()
        self.longest_call_s = max(self.longest_call_s, time.monotonic() - start)


def wait_until(condition: Callable[[], bool], limit_s: float, message: str) -> None:
    """Wait until the condition is true; fail with the message after `limit_s`."""
    limit = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < limit, f"{message} within {limit_s} s"
        time.sleep(0.02)


def runs_in(store: str, experiment: str) -> dict[str | None, Run]:
    """Trial number as text -> run, None -> the sweep's run. Fails if a trial has two runs."""
    client = MlflowClient(store)
    entity = client.get_experiment_by_name(experiment)
    assert entity is not None
    runs = list(client.search_runs([entity.experiment_id]))
    by_trial = {run.data.tags.get("kdray.trial"): run for run in runs}
    assert len(by_trial) == len(runs), [run.info.run_name for run in runs]
    return by_trial


def assert_all_in_mlflow(paths: SweepPaths, store: str, experiment: str, status: str = "FINISHED") -> None:
    """Check that every trial has exactly one run, with the values, times and state that the ledger has."""
    ledger = Ledger.read(paths.journal, paths.name)
    runs = runs_in(store, experiment)
    assert set(runs) == {None, *(str(record.number) for record in ledger.records())}
    sweep = runs[None]
    assert (sweep.info.status, sweep.info.run_id) == (status, ledger.attr("mlflow_run"))
    assert sweep.data.params == {"search.trials": "3"}
    for record in ledger.records():
        run = runs[str(record.number)]
        assert run.info.run_id == record.run_id
        assert run.data.tags["mlflow.parentRunId"] == sweep.info.run_id
        assert run.data.params == {"student.layers": "evenly", "training.epochs": "3", "student.depth": "2"}
        assert run.data.metrics == pytest.approx({k: v for k, v in record.metrics.items() if k != "step"})
        assert run.info.start_time == int(record.started * 1000)
        if record.state != "running":
            assert run.info.status == STATUS[record.state]
            assert run.info.end_time == pytest.approx(record.ended * 1000, rel=0, abs=2000)
        points = MlflowClient(store).get_metric_history(run.info.run_id, "accuracy")
        expected = [
            (evaluation["step"], evaluation["accuracy"], int((record.started + 0.5 * count) * 1000))
            for count, evaluation in enumerate(record.history, start=1)
        ]
        assert [(point.step, point.value, point.timestamp) for point in points] == expected
