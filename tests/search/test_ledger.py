"""The ledger: kdray and Optuna read again what was written, also after the process or the storage failed."""

import resource
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from kdray.errors import SpecError, StorageError
from kdray.search.ledger import Ledger
from kdray.search.settings import Search

OBJECTIVES = ("accuracy", "latency_ms")
DISTRIBUTIONS = {"alpha": FloatDistribution(0, 1), "student.depth": CategoricalDistribution([1, 2])}
COSTS = {"latency_ms": 2.5, "parameters": 10.0}


def open_ledger(tmp_path: Path) -> Ledger:
    """The ledger in the journal file, which is created if it does not exist."""
    return Ledger.open(tmp_path / "ledger" / "journal.log", "reviews", OBJECTIVES)


def make_ledger(tmp_path: Path) -> Ledger:
    """A ledger with one trial in each state."""
    ledger = open_ledger(tmp_path)
    for alpha in (0.1, 0.2, 0.3, 0.4):
        ledger.add({"alpha": alpha, "student.depth": 2}, DISTRIBUTIONS, COSTS, {})
    for epoch, accuracy in ((1, 0.8), (2, 0.9)):
        ledger.add_evaluation(0, {"accuracy": accuracy, "epoch": epoch, "step": 10 * epoch})
    ledger.finish(0, "completed")
    ledger.add_evaluation(1, {"accuracy": 0.5, "epoch": 1, "step": 10})
    ledger.finish(1, "stopped")
    ledger.finish(2, "failed", "ValueError: no")
    ledger.set_run_id(0, "run-of-0")  # the trial has ended
    ledger.set_run_id(3, "run-of-3")
    ledger.set_attr("teacher", {"accuracy": 0.95})
    return ledger


def test_a_ledger_opened_again_has_everything(tmp_path: Path) -> None:
    before, after = make_ledger(tmp_path), open_ledger(tmp_path)
    for old, new in zip(before.records(), after.records(), strict=True):
        assert (new.params, new.state, new.history, new.costs, new.error, new.run_id, new.attempts) == (
            old.params,
            old.state,
            old.history,
            old.costs,
            old.error,
            old.run_id,
            old.attempts,
        )
        assert new.started == pytest.approx(old.started, abs=0.01)
        assert new.ended == pytest.approx(old.ended, abs=0.1)
    assert after.attr("teacher") == {"accuracy": 0.95}
    assert [record.state for record in after.records()] == ["completed", "stopped", "failed", "running"]
    assert after.records()[0].metrics == {"accuracy": 0.9, "epoch": 2, "step": 20, **COSTS}


def test_optuna_reads_it(tmp_path: Path) -> None:
    make_ledger(tmp_path)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "ledger" / "journal.log")))
    study = optuna.load_study(study_name="reviews", storage=storage)
    assert study.metric_names == list(OBJECTIVES)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [trial.state for trial in study.trials] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.RUNNING,
    ]
    assert study.trials[0].values == [0.9, 2.5]
    assert study.best_trials[0].params == {"alpha": 0.1, "student.depth": 2}


def test_an_evaluation_at_a_recorded_step_changes_nothing(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    ledger.add_evaluation(3, {"accuracy": 0.5, "step": 10})
    ledger.add_evaluation(3, {"accuracy": 0.6, "step": 10})
    ledger.add_evaluation(3, {"accuracy": 0.7, "step": 20})
    assert [metrics["accuracy"] for metrics in open_ledger(tmp_path).records()[3].history] == [0.5, 0.7]


def test_a_resumed_trial_has_one_more_attempt_and_a_new_start_time(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    first = ledger[3].started
    ledger.resume(3)
    again = open_ledger(tmp_path)[3]
    assert (again.attempts, again.state) == (2, "running")
    assert again.started > first


def test_a_torn_last_line_loses_that_line_only(tmp_path: Path) -> None:
    make_ledger(tmp_path)
    journal = tmp_path / "ledger" / "journal.log"
    with journal.open("ab") as file:
        file.write(b'{"op_code": 8, "worker_id": "x", "trial_')
    ledger = open_ledger(tmp_path)
    ledger.add_evaluation(3, {"accuracy": 0.5, "step": 10})
    ledger.finish(3, "completed")
    assert [record.state for record in open_ledger(tmp_path).records()] == [
        "completed",
        "stopped",
        "failed",
        "completed",
    ]


def test_the_lock_of_a_killed_process_delays_no_write(tmp_path: Path) -> None:
    """Optuna alone would wait 30 s for the lock."""
    ledger, began = make_ledger(tmp_path), time.monotonic()
    (tmp_path / "ledger" / "journal.log.lock").symlink_to(tmp_path / "ledger" / "journal.log")
    open_ledger(tmp_path).add_evaluation(3, {"accuracy": 0.5, "step": 10})
    assert time.monotonic() - began < 10
    assert len(ledger) == 4


def test_reading_keeps_a_line_that_another_process_writes(tmp_path: Path) -> None:
    make_ledger(tmp_path)
    journal = tmp_path / "ledger" / "journal.log"
    with journal.open("ab") as file:
        file.write(b'{"op_code": 8')
    before = journal.read_bytes()
    assert len(Ledger.read(journal, "reviews")) == 4
    assert journal.read_bytes() == before


def test_a_ledger_can_be_a_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    ledger = Ledger.open(url, "reviews", OBJECTIVES)
    ledger.add({"alpha": 0.1, "student.depth": 1}, DISTRIBUTIONS, COSTS, {})
    ledger.add_evaluation(0, {"accuracy": 0.9, "step": 1})
    ledger.finish(0, "completed")
    assert Ledger.read(url, "reviews").records()[0].metrics["accuracy"] == 0.9


def test_a_ledger_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    make_ledger(tmp_path)
    journal = tmp_path / "ledger" / "journal.log"
    with pytest.raises(StorageError, match="objectives accuracy, latency_ms; got accuracy"):
        Ledger.open(journal, "reviews", ("accuracy", "loss"))
    with pytest.raises(StorageError, match="no such file"):
        Ledger.read(tmp_path / "none.log", "reviews")
    with pytest.raises(StorageError, match="holds no sweep 'other'"):
        Ledger.read(journal, "other")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(
        StorageError, match=r"file/j\.log: cannot be used \(.*\)\. Give a journal file in a folder you may"
    ):
        Ledger.open(tmp_path / "file" / "j.log", "reviews", OBJECTIVES)


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [b"not a journal", b"\0" * 200, b'{"op_code": 8, "worker', b"[1, 2]", b"{}", b""])
@pytest.mark.parametrize("place", [0, 4, -1])
def test_a_damaged_line_is_refused_with_its_number(tmp_path: Path, garbage: bytes, place: int) -> None:
    make_ledger(tmp_path)
    journal = tmp_path / "ledger" / "journal.log"
    lines = journal.read_bytes().splitlines()
    lines[place] = garbage
    damaged = b"\n".join(lines) + b"\n"
    journal.write_bytes(damaged)
    number = range(1, len(lines) + 1)[place]
    for open_or_read in (lambda: open_ledger(tmp_path), lambda: Ledger.read(journal, "reviews")):
        with pytest.raises(StorageError) as caught:
            open_or_read()
        assert f"ledger {journal}: line {number} is damaged" in str(caught.value)
        assert f"The {number - 1} lines before it are undamaged" in str(caught.value)
    assert journal.read_bytes() == damaged


def test_a_failed_write_leaves_no_part_of_a_line(tmp_path: Path) -> None:
    """The size limit of the file ends in the middle of a line, as on a full disk."""
    ledger = make_ledger(tmp_path)
    journal = tmp_path / "ledger" / "journal.log"
    before = journal.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            ledger.add_evaluation(3, {"accuracy": 0.5, "step": 10})
        assert caught.value.filename == str(journal)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert journal.read_bytes() == before
    ledger.set_run_id(3, "run-of-3")
    assert [record.state for record in open_ledger(tmp_path).records()] == ["completed", "stopped", "failed", "running"]


# Databases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("ledger.db", "no URL of a database that Optuna supports begins with 'ledger.db'"),
        ("redis://host/0", "begins with 'redis'"),
        ("sqlite://", "a database in memory is lost when the process ends"),
        ("sqlite:///:memory:", "a database in memory is lost when the process ends"),
        ("postgresql://anna:s3cret@host/kd", "PGPASSWORD or ~/.pgpass"),
        ("postgres://anna:s3cret@host/kd", "begins with 'postgres'"),
        ("postgresql://anna@host/kd?password=s3cret", "there is a password in the URL"),
        ("mysql+pymysql://anna:s3cret@host/kd", "there is a password in the URL"),
    ],
)
def test_an_unusable_url_is_refused_without_its_password(url: str, part: str) -> None:
    with pytest.raises(SpecError, match=r"Search\.ledger: ") as caught:
        Search(ledger=url)
    assert part in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_the_url_of_a_sqlite_file_gets_its_full_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Search(ledger="sqlite:///kd.db").ledger == f"sqlite:///{tmp_path}/kd.db"
    assert Search(ledger="postgresql://anna@host/kd").ledger == "postgresql://anna@host/kd"


def test_a_database_that_does_not_answer_is_refused_within_its_timeout() -> None:
    with socket.socket() as silent:  # accepts the connection and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port, began = silent.getsockname()[1], time.monotonic()
        with pytest.raises(StorageError) as caught:
            Ledger.open(f"postgresql://anna@127.0.0.1:{port}/kd?connect_timeout=2", "reviews", OBJECTIVES)
    assert time.monotonic() - began < 15
    assert f"ledger postgresql://anna@127.0.0.1:{port}/kd" in str(caught.value)
    assert "timeout expired" in str(caught.value)
    assert "Check that the database is up" in str(caught.value)
    with pytest.raises(StorageError, match="Connection refused"):
        Ledger.read(f"postgresql://anna@127.0.0.1:{port}/kd", "reviews")


def test_reading_creates_no_database(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no.db: no such file"):
        Ledger.read(f"sqlite:///{tmp_path}/no.db", "reviews")
    assert not list(tmp_path.iterdir())


def test_a_sweep_of_another_folder_is_neither_opened_nor_deleted(tmp_path: Path) -> None:
    """Two storages use one database, each with a sweep of the same name."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    Ledger.open(url, "reviews", OBJECTIVES, "folder one").add(
        {"alpha": 0.1, "student.depth": 1}, DISTRIBUTIONS, COSTS, {}
    )
    with pytest.raises(StorageError, match="'reviews' in it belongs to another folder"):
        Ledger.open(url, "reviews", OBJECTIVES, "folder two")
    Ledger.delete(url, "reviews", "folder two")
    with pytest.raises(StorageError, match="'reviews' in it belongs to another folder"):
        Ledger.count_trials(url, "reviews", "folder two")
    assert Ledger.count_trials(url, "reviews", "folder one") == 1
    Ledger.delete(url, "reviews", "folder one")
    assert Ledger.count_trials(url, "reviews") is None
    Ledger.delete(url, "reviews", "folder one")


def test_a_study_with_trials_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    study = optuna.create_study(storage=url, study_name="reviews", directions=["maximize", "minimize"])
    Ledger.open(url, "reviews", OBJECTIVES, "folder one")  # an empty study may become a sweep
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1.0), n_trials=1)
    other = optuna.create_study(storage=url, study_name="other", directions=["maximize", "minimize"])
    other.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1.0), n_trials=1)
    with pytest.raises(StorageError, match="'other' in it belongs to another folder"):
        Ledger.open(url, "other", OBJECTIVES, "folder one")


def test_a_write_waits_for_a_locked_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock lasts longer than SQLite waits, so the write is tried again."""
    monkeypatch.setattr("kdray.search.ledger_storage.BUSY_S", 0.1)
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db", "reviews", OBJECTIVES)
    ledger.add({"alpha": 0.1, "student.depth": 1}, DISTRIBUTIONS, COSTS, {})
    with lock_database(tmp_path / "ledger.db", seconds=2) as released:
        ledger.add_evaluation(0, {"accuracy": 0.9, "step": 1})
        assert released.is_set()
    with lock_database(tmp_path / "ledger.db", seconds=2) as released:
        ledger.add({"alpha": 0.2, "student.depth": 2}, DISTRIBUTIONS, COSTS, {})
        assert released.is_set()
    with lock_database(tmp_path / "ledger.db", seconds=2) as released:
        ledger.finish(0, "completed")
        assert released.is_set()
    records = Ledger.read(f"sqlite:///{tmp_path}/ledger.db", "reviews").records()
    assert [(record.number, record.state, len(record.history)) for record in records] == [
        (0, "completed", 1),
        (1, "running", 0),
    ]


def test_a_database_that_stays_away_raises_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdray.search.ledger_storage.BUSY_S", 0.1)
    monkeypatch.setattr("kdray.search.ledger.OUTAGE_S", 1.0)
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db", "reviews", OBJECTIVES)
    began = time.monotonic()
    with lock_database(tmp_path / "ledger.db", seconds=60):
        with pytest.raises(
            StorageError, match=r"ledger sqlite:.*could not be written .*locked.*the same command then continues"
        ):
            ledger.set_attr("x", 1)
        with pytest.raises(StorageError):  # after the first failure no write waits
            ledger.set_attr("y", 1)
    assert time.monotonic() - began < 30


@contextmanager
def lock_database(database: Path, seconds: float) -> Iterator[threading.Event]:
    """Lock the database for this time, or until the block ends if that is earlier. The event is set at the release."""
    connection = sqlite3.connect(database, check_same_thread=False, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    released = threading.Event()

    def release() -> None:
        if not released.is_set():
            released.set()
            connection.execute("ROLLBACK")

    timer = threading.Timer(seconds, release)
    timer.start()
    try:
        yield released
    finally:
        timer.cancel()
        timer.join()
        release()
        connection.close()


# Longer lists ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_longer_list_is_written_into_every_trial(tmp_path: Path, kind: str) -> None:
    where = tmp_path / "journal.log" if kind == "journal" else f"sqlite:///{tmp_path}/ledger.db"
    first = Ledger.open(where, "reviews", OBJECTIVES)
    assert first.extend_choices(DISTRIBUTIONS) == DISTRIBUTIONS
    for depth in (2, 1):
        first.add({"alpha": 0.5, "student.depth": depth}, DISTRIBUTIONS, COSTS, {"note": depth})
    first.finish(1, "failed", "ValueError: no")
    longer = DISTRIBUTIONS | {"student.depth": CategoricalDistribution([3, 2, 4, 1])}
    ledger = Ledger.open(where, "reviews", OBJECTIVES)
    now = ledger.extend_choices(longer)
    assert now["student.depth"] == CategoricalDistribution([1, 2, 3, 4])
    assert ledger.extend_choices(longer) == now
    ledger.add({"alpha": 0.5, "student.depth": 4}, now, COSTS, {})
    ledger.add_evaluation(0, {"accuracy": 0.5, "step": 1})
    again = Ledger.read(where, "reviews")
    assert [record.params["student.depth"] for record in again.records()] == [2, 1, 4]
    assert [record.state for record in again.records()] == ["running", "failed", "running"]
    assert [again.sampler_notes(number) for number in range(3)] == [{"note": 2}, {"note": 1}, {}]
    storage = JournalStorage(JournalFileBackend(str(where))) if kind == "journal" else where
    study = optuna.load_study(study_name="reviews", storage=storage)
    assert {trial.distributions["student.depth"].choices for trial in study.trials} == {(1, 2, 3, 4)}  # type: ignore
    assert study.ask(dict(now)).params["student.depth"] in (1, 2, 3, 4)


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_repeated_value_keeps_its_index_in_a_longer_list(tmp_path: Path, kind: str) -> None:
    """A space may repeat a value so that it is drawn more often: tune.choice([2, 2, 3, 4])."""
    where = tmp_path / "journal.log" if kind == "journal" else f"sqlite:///{tmp_path}/ledger.db"
    twice = DISTRIBUTIONS | {"student.depth": CategoricalDistribution([2, 2, 3, 4])}
    first = Ledger.open(where, "reviews", OBJECTIVES)
    first.extend_choices(twice)
    for depth in (2, 3, 4):
        first.add({"alpha": 0.5, "student.depth": depth}, twice, COSTS, {})
    for now in (twice, DISTRIBUTIONS | {"student.depth": CategoricalDistribution([5, 4, 3, 2])}):
        Ledger.open(where, "reviews", OBJECTIVES).extend_choices(now)
        assert [record.params["student.depth"] for record in Ledger.read(where, "reviews").records()] == [2, 3, 4]


def test_a_list_may_not_lose_a_value(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    with pytest.raises(SpecError, match=r"space\['student.depth'\]: was \[1, 2\], now \[1, 3\]; a list may only grow"):
        ledger.extend_choices(DISTRIBUTIONS | {"student.depth": CategoricalDistribution([1, 3])})
