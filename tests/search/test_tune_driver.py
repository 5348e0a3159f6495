"""Ray Tune over real slots: the same table as without Ray, nothing lost, slots freed at once, nothing on the screen."""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle, tune
from ray.tune.execution.tune_controller import TuneController

from kdray.errors import DataError, StorageError
from kdray.evaluation.trial_record import TrialRecord
from kdray.search import sequential_driver, tune_driver
from kdray.search.ledger import Ledger
from kdray.search.planner import Planner
from kdray.search.run_search import run_search
from kdray.search.settings import Search
from kdray.slots.cluster import connect
from kdray.slots.interrupts import handle_signals
from kdray.slots.job import Job, Report, Worker
from kdray.slots.local import LocalSlots
from kdray.slots.pool import SlotSettings
from kdray.slots.ray_slots import RaySlots, open_slots

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file

SPACE = {"student.depth": [1, 2, 3], "distillation.alpha": tune.uniform(0.0, 1.0)}


@dataclass(frozen=True)
class Teaching:
    """Three evaluations; the accuracy follows from the settings."""

    params: dict[str, Any]

    def __call__(self, worker: Worker) -> Iterator[Report]:
        for epoch in (1, 2, 3):
            accuracy = 0.6 + 0.05 * self.params["student.depth"] - (self.params["distillation.alpha"] - 0.7) ** 2
            yield {"accuracy": accuracy * (1 - 0.5**epoch), "epoch": epoch, "step": 10 * epoch}


@dataclass(frozen=True)
class Lingering:
    """One evaluation, then steps of 20 ms until it is told to stop; the odd ones do better."""

    number: int
    folder: Path

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield {"accuracy": 0.1 + 0.8 * (self.number % 2), "epoch": 1, "step": 1}
        if self.number % 2 == 0 and self.number > 4:
            until = time.monotonic() + 60
            while not worker.must_stop() and time.monotonic() < until:
                time.sleep(0.02)
            (self.folder / str(self.number)).write_text("stopped" if worker.must_stop() else "never told")
        else:
            yield {"accuracy": 0.9, "epoch": 2, "step": 2}


@dataclass(frozen=True)
class Failing:
    """Fails in the way that its number says."""

    number: int

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield {"accuracy": 0.5, "epoch": 1, "step": 1}
        match self.number:
            case 1:
                raise DataError("row 3: no label")
            case 2:
                raise ZeroDivisionError("by nought")
            case 3:
                yield {"accuracy": float("nan"), "epoch": 2, "step": 2}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RaySlots]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    info = connect("local", False, tmp_path_factory.mktemp("logs"))
    folder = tmp_path_factory.mktemp("slots")
    with open_slots(SlotSettings(count=2, cpus=1), folder / "logs") as slots:
        slots.wait(120)
        yield slots
    info.close()


class OneAtATime:
    """The same slots, used one at a time."""

    count = 1

    def __init__(self, pool: RaySlots) -> None:
        self.run, self.cancel, self.suspend, self.client = pool.run, pool.cancel, pool.suspend, pool.client


def study(folder: Path, space: dict[str, Any] = SPACE, **settings: Any) -> Planner:
    asked = Search(**({"trials": 12, "stopping": None} | settings))
    ledger = Ledger.open(folder / "journal.log", "sweep", asked.objectives)
    return Planner(
        asked, space, ledger, lambda params: {"latency_ms": float(params["student.depth"])}, lambda params: 3
    )


def teaching(number: int, params: dict[str, Any]) -> Job:
    return Teaching(params)


def quietly(record: TrialRecord) -> None: ...


def table(records: list[TrialRecord]) -> list[tuple[object, ...]]:
    return [(record.number, record.params, record.state, record.history) for record in records]


def test_one_slot_gives_the_table_of_the_run_without_ray(pool: RaySlots, tmp_path: Path) -> None:
    with_ray, without = (study(tmp_path / name, trials=20, stopping={}) for name in ("with", "without"))
    tune_driver.run_with_tune(OneAtATime(pool), with_ray, teaching, quietly)  # type: ignore[arg-type]
    sequential_driver.run_in_sequence(LocalSlots(), without, teaching, quietly)
    assert table(with_ray.records()) == table(without.records())
    assert {record.state for record in with_ray.records()} == {"completed", "stopped"}


def test_no_report_is_lost_and_nothing_is_left_or_shown(
    pool: RaySlots, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[TrialRecord] = []
    run_search(pool, study(tmp_path, trials=30, sampler="random"), teaching, seen.append)
    last = {record.number: record for record in seen}
    assert sorted(last) == list(range(30))
    assert all(record.state == "completed" for record in last.values())
    assert all([metrics["epoch"] for metrics in record.history] == [1, 2, 3] for record in last.values())
    assert len(seen) == 30 * 5
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["journal.log"]


def test_failing_trials_are_rows_with_their_reasons(pool: RaySlots, tmp_path: Path) -> None:
    def make_job(number: int, params: dict[str, Any]) -> Job:
        if number == 4:
            raise DataError("no such layer")
        return Failing(number)

    sweep = study(tmp_path, trials=6)
    run_search(pool, sweep, make_job, quietly)
    records = sweep.records()
    assert [record.state for record in records] == ["completed", "failed", "failed", "failed", "failed", "completed"]
    assert records[1].error == "row 3: no label"
    assert "ZeroDivisionError: by nought" in (records[2].error or "")
    assert records[3].error == "accuracy is nan at epoch 2"
    assert records[4].error == "no such layer"


def test_a_stopped_trial_leaves_its_slot_at_once(pool: RaySlots, tmp_path: Path) -> None:
    sweep = study(tmp_path, {**SPACE, "student.depth": [2]}, trials=9, stopping={}, sampler="random")
    run_search(pool, sweep, lambda number, params: Lingering(number, tmp_path), quietly)
    assert [sweep.record(number).state for number in (6, 8)] == ["stopped"] * 2
    assert [len(sweep.record(number).history) for number in (6, 8)] == [1, 1]
    assert (tmp_path / "6").read_text() == "stopped"


def test_a_killed_actor_costs_no_trial(pool: RaySlots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    taking = tune_driver.StudyScheduler.on_trial_result

    def killing(self: Any, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        verdict = taking(self, controller, trial, result)
        if self.driver.running.get(trial.trial_id) == 2 and not killed:
            killed.append(result["pid"])
            os.kill(result["pid"], signal.SIGKILL)
        return verdict

    monkeypatch.setattr(tune_driver.StudyScheduler, "on_trial_result", killing)
    sweep = study(tmp_path, trials=6)
    run_search(pool, sweep, teaching, quietly)
    assert [record.state for record in sweep.records()] == ["completed"] * 6
    assert sweep.record(2).attempts == 2
    assert [metrics["epoch"] for metrics in sweep.record(2).history] == [1, 2, 3]


def test_an_actor_that_keeps_dying_fails_its_trial_in_the_end(
    pool: RaySlots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Any, trial_id: str, result: Any = None, error: bool = False) -> None:
        completing(self, trial_id, result, error or self.driver.running.get(trial_id) == 1)

    completing = tune_driver.StudySearcher.on_trial_complete
    monkeypatch.setattr(tune_driver.StudySearcher, "on_trial_complete", failing)
    sweep = study(tmp_path, trials=3)
    run_search(pool, sweep, teaching, quietly)
    assert [record.state for record in sweep.records()] == ["completed", "failed", "completed"]
    assert sweep.record(1).attempts == 4


def test_an_interrupt_leaves_trials_running_and_the_next_session_begins_them_again(
    pool: RaySlots, tmp_path: Path
) -> None:
    def interrupting(record: TrialRecord) -> None:
        if record.number == 3 and record.history and record.state == "running":
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), handle_signals():
        run_search(pool, study(tmp_path, trials=6), teaching, interrupting)
    assert signal.getsignal(signal.SIGINT) is before
    states = [record.state for record in Ledger.read(tmp_path / "journal.log", "sweep").records()]
    assert states[3] == "running"
    again = study(tmp_path, trials=6)
    run_search(pool, again, teaching, quietly)
    assert [record.state for record in again.records()] == ["completed"] * 6
    assert again.record(3).attempts == 2


def test_an_error_of_who_listens_comes_out_as_it_is(pool: RaySlots, tmp_path: Path) -> None:
    def full(record: TrialRecord) -> None:
        if record.number == 1:
            raise StorageError("no space left")

    sweep = study(tmp_path)
    with pytest.raises(StorageError, match="no space left"):
        run_search(pool, sweep, teaching, full)
    assert sweep.record(1).state == "running"  # to be gone on with


def test_the_budget_in_two_sessions(pool: RaySlots, tmp_path: Path) -> None:
    makers: list[Callable[[], Planner]] = [lambda: study(tmp_path, trials=3), lambda: study(tmp_path, trials=5)]
    for make in makers:
        run_search(pool, make(), teaching, quietly)
    run_search(pool, makers[1](), teaching, quietly)  # nothing left to do
    assert [record.state for record in makers[1]().records()] == ["completed"] * 5


def test_an_actor_that_cannot_be_used_again_loses_no_trial(
    pool: RaySlots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resets: list[bool] = []
    used_again = TuneController._on_trial_reset

    def refusing(self: TuneController, trial: Any, success: bool) -> None:
        resets.append(success and len(resets) != 1)
        used_again(self, trial, resets[-1])

    monkeypatch.setattr(TuneController, "_on_trial_reset", refusing)
    sweep = study(tmp_path, trials=6)
    run_search(pool, sweep, teaching, quietly)
    assert resets.count(False) == 1
    assert [record.state for record in sweep.records()] == ["completed"] * 6
    assert sorted(record.attempts for record in sweep.records()) == [1] * 5 + [2]
