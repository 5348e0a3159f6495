"""The driver with Ray Tune, on real slots.

It gives the same table as the driver without Ray, loses no report, releases the slot of a stopped trial at once, and
prints nothing.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
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
from kdray.search.driver import MakeJob
from kdray.search.ledger import Ledger
from kdray.search.planner import Length, Planner
from kdray.search.run_search import run_search
from kdray.search.settings import Search
from kdray.search.space import SearchSpace
from kdray.slots.cluster import connect
from kdray.slots.interrupts import handle_signals
from kdray.slots.job import Job, Report, Worker
from kdray.slots.local import LocalSlots
from kdray.slots.pool import SlotSettings
from kdray.slots.ray_slots import RaySlots, open_slots
from kdray.training.fused_trials import FusedTrials
from kdray.training.trial import Recipe, Trial, TrialInputs

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file

SPACE = {"student.depth": [1, 2, 3], "distillation.alpha": tune.uniform(0.0, 1.0)}


@dataclass(frozen=True)
class TrainingJob:
    """A job of three evaluations, whose accuracy depends on the settings."""

    params: dict[str, Any]

    def __call__(self, worker: Worker) -> Iterator[Report]:
        for epoch in (1, 2, 3):
            accuracy = 0.6 + 0.05 * self.params["student.depth"] - (self.params["distillation.alpha"] - 0.7) ** 2
            yield {"accuracy": accuracy * (1 - 0.5**epoch), "epoch": epoch, "step": 10 * epoch}


@dataclass(frozen=True)
class LongJob:
    """A job that is better if its number is odd. Even numbers above 4 run until stopped, in steps of 20 ms."""

    number: int
    folder: Path

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield {"accuracy": 0.1 + 0.8 * (self.number % 2), "epoch": 1, "step": 1}
        if self.number % 2 == 0 and self.number > 4:
            deadline = time.monotonic() + 60
            while not worker.must_stop() and time.monotonic() < deadline:
                time.sleep(0.02)
            (self.folder / str(self.number)).write_text("stopped" if worker.must_stop() else "not stopped")
        else:
            yield {"accuracy": 0.9, "epoch": 2, "step": 2}


@dataclass(frozen=True)
class FailingJob:
    """A job that fails in a different way for each of the numbers 1 to 3."""

    number: int

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield {"accuracy": 0.5, "epoch": 1, "step": 1}
        match self.number:
            case 1:
                raise DataError("row 3: no label")
            case 2:
                raise ZeroDivisionError("division by zero")
            case 3:
                yield {"accuracy": float("nan"), "epoch": 2, "step": 2}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RaySlots]:
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, configure_logging=False)
    info = connect("local", False, tmp_path_factory.mktemp("logs"))
    folder = tmp_path_factory.mktemp("slots")
    with open_slots(SlotSettings(count=2, cpus=1), folder / "logs") as slots:
        slots.wait(120)
        yield slots
    info.close()


@pytest.fixture
def fused(pool: RaySlots, tmp_path: Path) -> Iterator[RaySlots]:
    """One slot beside those of `pool`, which runs up to three trials as one."""
    with open_slots(SlotSettings(count=1, cpus=1, fused=3), tmp_path / "fused-logs") as slots:
        slots.wait(120)
        yield slots


@dataclass(frozen=True)
class CountedTrial(Trial):
    """A trial that writes with how many others it runs."""

    def fused_with(self, others: Sequence[Trial]) -> FusedTrials:
        self.target.with_name("others").write_text(str(len(others)))
        return super().fused_with(others)


class OneSlot:
    """A pool that uses only one of the slots."""

    count = places = 1

    def __init__(self, pool: RaySlots) -> None:
        self.run, self.cancel, self.suspend, self.client = pool.run, pool.cancel, pool.suspend, pool.client


def make_planner(folder: Path, space: dict[str, Any] = SPACE, **settings: Any) -> Planner:
    search = Search(**({"trials": 12, "stopping": None, "objectives": ("accuracy", "latency_ms")} | settings))
    ledger = Ledger.open(folder / "journal.log", "sweep", search.objectives)
    return Planner(
        search,
        SearchSpace(space),
        ledger,
        costs=lambda params: {"latency_ms": float(params["student.depth"])},
        length=lambda params: Length(3),
    )


def make_training_job(number: int, params: dict[str, Any]) -> Job:
    return TrainingJob(params)


def ignore(record: TrialRecord) -> None: ...


def table(records: list[TrialRecord]) -> list[tuple[object, ...]]:
    return [(record.number, record.params, record.state, record.history) for record in records]


def test_one_slot_gives_the_table_of_the_driver_without_ray(pool: RaySlots, tmp_path: Path) -> None:
    with_ray, without = (make_planner(tmp_path / name, trials=20, stopping={}) for name in ("with", "without"))
    tune_driver.run_with_tune(OneSlot(pool), with_ray, make_training_job, ignore)  # type: ignore[arg-type]
    sequential_driver.run_in_sequence(LocalSlots(), without, make_training_job, ignore)
    assert table(with_ray.records()) == table(without.records())
    assert {record.state for record in with_ray.records()} == {"completed", "stopped"}


def test_no_report_is_lost_no_file_is_left_and_nothing_is_printed(
    pool: RaySlots, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    of_tune: list[tune.experiment.Trial] = []
    on_trial_add = tune_driver.PlannerScheduler.on_trial_add

    def remember(self: tune_driver.PlannerScheduler, controller: TuneController, trial: tune.experiment.Trial) -> None:
        of_tune.append(trial)
        on_trial_add(self, controller, trial)

    monkeypatch.setattr(tune_driver.PlannerScheduler, "on_trial_add", remember)
    changes: list[TrialRecord] = []
    run_search(pool, make_planner(tmp_path, trials=30, sampler="random"), make_training_job, changes.append)
    last = {record.number: record for record in changes}
    assert sorted(last) == list(range(30))
    assert all(record.state == "completed" for record in last.values())
    assert all([metrics["epoch"] for metrics in record.history] == [1, 2, 3] for record in last.values())
    assert len(changes) == 30 * 5
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["journal.log"]
    assert len(of_tune) == 30
    assert not any(trial.metric_n_steps or trial.metric_analysis for trial in of_tune)


def test_failed_trials_are_rows_with_their_reasons(pool: RaySlots, tmp_path: Path) -> None:
    def make_job(number: int, params: dict[str, Any]) -> Job:
        if number == 4:
            raise DataError("no such layer")
        return FailingJob(number)

    planner = make_planner(tmp_path, trials=6)
    run_search(pool, planner, make_job, ignore)
    records = planner.records()
    assert [record.state for record in records] == ["completed", "failed", "failed", "failed", "failed", "completed"]
    assert records[1].error == "row 3: no label"
    assert "ZeroDivisionError: division by zero" in (records[2].error or "")
    assert records[3].error == "accuracy is nan at epoch 2"
    assert records[4].error == "no such layer"


def test_a_stopped_trial_releases_its_slot_at_once(pool: RaySlots, tmp_path: Path) -> None:
    planner = make_planner(tmp_path, {**SPACE, "student.depth": [2]}, trials=9, stopping={}, sampler="random")
    run_search(pool, planner, lambda number, params: LongJob(number, tmp_path), ignore)
    assert [planner.record(number).state for number in (6, 8)] == ["stopped"] * 2
    assert [len(planner.record(number).history) for number in (6, 8)] == [1, 1]
    assert (tmp_path / "6").read_text() == "stopped"


@pytest.mark.slow
def test_a_killed_actor_loses_no_trial(pool: RaySlots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    on_trial_result = tune_driver.PlannerScheduler.on_trial_result

    def process_and_kill(self: Any, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = on_trial_result(self, controller, trial, result)
        if self.driver.running.get(trial.trial_id) == 2 and not killed:
            killed.append(result["pid"])
            os.kill(result["pid"], signal.SIGKILL)
        return decision

    monkeypatch.setattr(tune_driver.PlannerScheduler, "on_trial_result", process_and_kill)
    planner = make_planner(tmp_path, trials=6)
    run_search(pool, planner, make_training_job, ignore)
    assert [record.state for record in planner.records()] == ["completed"] * 6
    assert planner.record(2).attempts == 2
    assert [metrics["epoch"] for metrics in planner.record(2).history] == [1, 2, 3]


@pytest.mark.slow
def test_a_trial_whose_actor_dies_repeatedly_fails(
    pool: RaySlots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def complete_or_fail(self: Any, trial_id: str, result: Any = None, error: bool = False) -> None:
        on_trial_complete(self, trial_id, result, error or self.driver.running.get(trial_id) == 1)

    on_trial_complete = tune_driver.PlannerSearcher.on_trial_complete
    monkeypatch.setattr(tune_driver.PlannerSearcher, "on_trial_complete", complete_or_fail)
    planner = make_planner(tmp_path, trials=3)
    run_search(pool, planner, make_training_job, ignore)
    assert [record.state for record in planner.records()] == ["completed", "failed", "completed"]
    assert planner.record(1).attempts == 4


def test_an_interrupt_leaves_trials_running_and_the_next_session_resumes_them(pool: RaySlots, tmp_path: Path) -> None:
    def interrupt(record: TrialRecord) -> None:
        if record.number == 3 and record.history and record.state == "running":
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), handle_signals():
        run_search(pool, make_planner(tmp_path, trials=6), make_training_job, interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    states = [record.state for record in Ledger.read(tmp_path / "journal.log", "sweep").records()]
    assert states[3] == "running"
    again = make_planner(tmp_path, trials=6)
    run_search(pool, again, make_training_job, ignore)
    assert [record.state for record in again.records()] == ["completed"] * 6
    assert again.record(3).attempts == 2


def test_an_error_of_on_change_is_raised_unchanged(pool: RaySlots, tmp_path: Path) -> None:
    def raise_storage_error(record: TrialRecord) -> None:
        if record.number == 1:
            raise StorageError("no space left")

    planner = make_planner(tmp_path)
    with pytest.raises(StorageError, match="no space left"):
        run_search(pool, planner, make_training_job, raise_storage_error)
    assert planner.record(1).state == "running"  # the next session resumes it


@pytest.mark.slow
def test_the_budget_includes_earlier_sessions(pool: RaySlots, tmp_path: Path) -> None:
    for trials in (3, 5):
        run_search(pool, make_planner(tmp_path, trials=trials), make_training_job, ignore)
    run_search(pool, make_planner(tmp_path, trials=5), make_training_job, ignore)  # the budget is spent: no trial runs
    assert [record.state for record in make_planner(tmp_path, trials=5).records()] == ["completed"] * 5


@pytest.mark.slow
def test_an_actor_that_cannot_be_reused_loses_no_trial(
    pool: RaySlots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resets: list[bool] = []
    on_trial_reset = TuneController._on_trial_reset

    def refuse_second_reset(self: TuneController, trial: Any, success: bool) -> None:
        resets.append(success and len(resets) != 1)
        on_trial_reset(self, trial, resets[-1])

    monkeypatch.setattr(TuneController, "_on_trial_reset", refuse_second_reset)
    planner = make_planner(tmp_path, trials=6)
    run_search(pool, planner, make_training_job, ignore)
    assert resets.count(False) == 1
    assert [record.state for record in planner.records()] == ["completed"] * 6
    assert sorted(record.attempts for record in planner.records()) == [1] * 5 + [2]


def test_trials_that_run_as_one_give_the_table_of_trials_that_run_alone(
    fused: RaySlots, trial_inputs: TrialInputs, recipe: Recipe, tmp_path: Path
) -> None:
    def trials_in(folder: Path) -> MakeJob:
        def make_job(number: int, params: dict[str, Any]) -> Job:
            target = folder / str(number) / "student"
            target.parent.mkdir(parents=True, exist_ok=True)
            return CountedTrial(recipe=recipe.with_dotted(params), inputs=trial_inputs, seed=0, target=target)

        return make_job

    space = {"student.depth": [2], "distillation.alpha": tune.uniform(0, 1), "training.learning_rate": [5e-4, 1e-3]}
    together, alone = (
        make_planner(tmp_path / name, space, trials=6, sampler="random") for name in ("together", "alone")
    )
    run_search(fused, together, trials_in(tmp_path / "together"), ignore)
    run_search(LocalSlots(), alone, trials_in(tmp_path / "alone"), ignore)
    assert sum(1 + int(path.read_text()) for path in (tmp_path / "together").glob("*/others")) >= 4
    times = {"examples_per_s", "train_seconds", "eval_seconds"}
    for one, other in zip(together.records(), alone.records(), strict=True):
        assert (one.params, one.state) == (other.params, other.state)
        assert one.state == "completed"
        assert len(one.history) == len(other.history) == 2
        for report, expected in zip(one.history, other.history, strict=True):
            numbers = {name: value for name, value in expected.items() if name not in times}
            assert {name: report[name] for name in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-5)
