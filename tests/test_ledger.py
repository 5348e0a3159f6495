"""The ledger: what is written is there again, for us and for Optuna, whatever happened to the process."""

from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from kdray.errors import StorageError
from kdray.search.ledger import Ledger

OBJECTIVES = ("accuracy", "latency_ms")
DISTRIBUTIONS = {"alpha": FloatDistribution(0, 1), "student.depth": CategoricalDistribution([1, 2])}
COSTS = {"latency_ms": 2.5, "parameters": 10.0}


def opened(tmp_path: Path) -> Ledger:
    return Ledger.open(tmp_path / "ledger" / "journal.log", "reviews", OBJECTIVES)


def filled(tmp_path: Path) -> Ledger:
    ledger = opened(tmp_path)
    for alpha in (0.1, 0.2, 0.3, 0.4):
        ledger.add({"alpha": alpha, "student.depth": 2}, DISTRIBUTIONS, COSTS, {})
    for epoch, accuracy in ((1, 0.8), (2, 0.9)):
        ledger.record(0, {"accuracy": accuracy, "epoch": epoch, "step": 10 * epoch})
    ledger.finish(0, "completed")
    ledger.record(1, {"accuracy": 0.5, "epoch": 1, "step": 10})
    ledger.finish(1, "stopped")
    ledger.finish(2, "failed", "ValueError: no")
    ledger.set_run_id(0, "run-of-0")  # after its end
    ledger.set_run_id(3, "run-of-3")
    ledger.set_attr("teacher", {"accuracy": 0.95})
    return ledger


def test_everything_is_there_again(tmp_path: Path) -> None:
    before, after = filled(tmp_path), opened(tmp_path)
    for old, new in zip(before.records(), after.records(), strict=True):
        assert (new.params, new.state, new.history, new.costs, new.error, new.run_id, new.attempts) == (
            old.params, old.state, old.history, old.costs, old.error, old.run_id, old.attempts
        )  # fmt: skip
        assert new.started == pytest.approx(old.started, abs=0.01)
        assert new.ended == pytest.approx(old.ended, abs=0.1)
    assert after.attr("teacher") == {"accuracy": 0.95}
    assert [record.state for record in after.records()] == ["completed", "stopped", "failed", "running"]
    assert after.records()[0].metrics == {"accuracy": 0.9, "epoch": 2, "step": 20, **COSTS}


def test_optuna_reads_it(tmp_path: Path) -> None:
    filled(tmp_path)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "ledger" / "journal.log")))
    study = optuna.load_study(study_name="reviews", storage=storage)
    assert study.metric_names == list(OBJECTIVES)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [trial.state for trial in study.trials] == [
        TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING
    ]  # fmt: skip
    assert study.trials[0].values == [0.9, 2.5]
    assert study.best_trials[0].params == {"alpha": 0.1, "student.depth": 2}


def test_the_same_step_again_changes_nothing(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    ledger.record(3, {"accuracy": 0.5, "step": 10})
    ledger.record(3, {"accuracy": 0.6, "step": 10})
    ledger.record(3, {"accuracy": 0.7, "step": 20})
    assert [metrics["accuracy"] for metrics in opened(tmp_path).records()[3].history] == [0.5, 0.7]


def test_a_resumed_trial_counts_its_attempts_and_starts_anew(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    first = ledger[3].started
    ledger.resume(3)
    again = opened(tmp_path)[3]
    assert (again.attempts, again.state) == (2, "running")
    assert again.started > first


def test_a_torn_last_line_costs_that_line_only(tmp_path: Path) -> None:
    filled(tmp_path)
    journal = tmp_path / "ledger" / "journal.log"
    with journal.open("ab") as file:
        file.write(b'{"op_code": 8, "worker_id": "x", "trial_')
    ledger = opened(tmp_path)
    ledger.record(3, {"accuracy": 0.5, "step": 10})
    ledger.finish(3, "completed")
    assert [record.state for record in opened(tmp_path).records()] == ["completed", "stopped", "failed", "completed"]


def test_reading_does_not_touch_a_line_that_is_being_written(tmp_path: Path) -> None:
    filled(tmp_path)
    journal = tmp_path / "ledger" / "journal.log"
    with journal.open("ab") as file:
        file.write(b'{"op_code": 8')
    before = journal.read_bytes()
    assert len(Ledger.read(journal, "reviews")) == 4
    assert journal.read_bytes() == before


def test_an_optuna_url_serves_as_well(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    ledger = Ledger.open(url, "reviews", OBJECTIVES)
    ledger.add({"alpha": 0.1, "student.depth": 1}, DISTRIBUTIONS, COSTS, {})
    ledger.record(0, {"accuracy": 0.9, "step": 1})
    ledger.finish(0, "completed")
    assert Ledger.read(url, "reviews").records()[0].metrics["accuracy"] == 0.9


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    journal = tmp_path / "ledger" / "journal.log"
    with pytest.raises(StorageError, match="objectives accuracy, latency_ms; got accuracy"):
        Ledger.open(journal, "reviews", ("accuracy", "loss"))
    with pytest.raises(StorageError, match="no such file"):
        Ledger.read(tmp_path / "none.log", "reviews")
    with pytest.raises(StorageError, match="holds no sweep 'other'"):
        Ledger.read(journal, "other")
    (tmp_path / "bad.log").write_text("not a journal\nat all\n")
    with pytest.raises(StorageError, match=r"bad\.log: cannot be used"):
        Ledger.open(tmp_path / "bad.log", "reviews", OBJECTIVES)
