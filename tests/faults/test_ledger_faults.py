"""A driver that is killed, a second driver, a damaged or unreachable ledger: no recorded trial is lost."""

import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from typer.testing import CliRunner

from kdray.cli.app import app
from kdray.errors import StorageError
from kdray.evaluation.trial_record import TrialRecord
from kdray.report.screen import NullScreen
from kdray.run import RunOptions, run
from kdray.search.settings import Search
from kdray.slots.pool import SlotSettings
from kdray.stages.reading import read_figures
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from tests.faults.postgres import Cluster, postgres_cluster
from tests.faults.sweep_process import wait_for, without_clock_metrics

pytestmark = pytest.mark.faults
MakeSweep = Callable[..., Sweep]

DRIVER = """
import pickle, subprocess, sys
from pathlib import Path
import torch
from kdray.cli.exits import exit_on_error
from kdray.storage.paths import SweepPaths
from kdray.run import RunOptions, run
from kdray.report.screen import PlainScreen

torch.set_num_threads(1)
no_output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
child = subprocess.Popen(["sleep", "300"], **no_output)  # like Ray's processes, it outlives a killed driver
print(child.pid, flush=True)
sweep = pickle.loads(Path(sys.argv[1]).read_bytes())
with exit_on_error():
    paths = SweepPaths(Path(sys.argv[2]), sweep.name)
    run(sweep, paths, RunOptions(local=True), PlainScreen(sys.stdout))
"""


class ActingScreen(NullScreen):
    """A screen that stores the notes, and calls `act` once when `ended` trials have ended."""

    def __init__(self, ended: int = 0, act: Callable[[], None] = lambda: None) -> None:
        self.notes: list[str] = []
        self._ended, self._act = ended, act

    def note(self, text: str) -> None:
        """Store the note."""
        self.notes.append(text)

    def trials(
        self, records: Sequence[TrialRecord], budget: int | None, best: TrialRecord | None, quality: str
    ) -> None:
        """Call `act` if enough trials have ended."""
        if self._ended and sum(record.state != "running" for record in records) >= self._ended:
            self._ended = 0
            self._act()


def search_fields(trials: int, **settings: Any) -> dict[str, Any]:
    """The fields of a sweep with this number of trials on one thread."""
    return {"search": Search(trials=trials, stopping=None, **settings), "slots": SlotSettings(cpus=1)}


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    return SweepPaths(tmp_path / "storage", "tiny")


@pytest.fixture
def drive(paths: SweepPaths, tmp_path: Path) -> Iterator[Callable[[Sweep], subprocess.Popen[str]]]:
    """A function that starts a driver in a process of its own; a child of the driver survives when it is killed."""
    drivers: list[subprocess.Popen[str]] = []
    children: list[int] = []

    def start(sweep: Sweep) -> subprocess.Popen[str]:
        (tmp_path / "sweep.pickle").write_bytes(pickle.dumps(sweep))
        command = [sys.executable, "-c", DRIVER, str(tmp_path / "sweep.pickle"), str(paths.storage)]
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        drivers.append(driver)
        assert driver.stdout
        children.append(int(driver.stdout.readline()))
        return driver

    yield start
    for child in children:
        os.kill(child, signal.SIGKILL)
    for driver in drivers:
        driver.kill()
        driver.communicate(timeout=20)


def count_ended(paths: SweepPaths) -> int:
    """The number of trials that have ended so far, read while the driver runs."""
    try:
        return sum(record.state != "running" for record in read_figures(paths).records)
    except StorageError:
        return 0


# Drivers --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_second_driver_is_refused_until_the_first_is_killed(
    make_sweep: MakeSweep, drive: Callable[[Sweep], subprocess.Popen[str]], paths: SweepPaths, tmp_path: Path, kind: str
) -> None:
    """While one driver runs, others are refused. After it is killed, the next one continues to the same table."""
    ledger = {"ledger": f"sqlite:///{tmp_path}/ledger.db"} if kind == "sqlite" else {}
    sweep = make_sweep(**search_fields(12, **ledger))
    driver = drive(sweep)
    wait_for(lambda: count_ended(paths) >= 2, "two trials")
    os.kill(driver.pid, signal.SIGSTOP)  # the driver hangs, but its process exists
    for fresh in (False, True):
        with pytest.raises(StorageError, match=rf"@.* \(pid {driver.pid}, since .*\) runs this sweep"):
            run(sweep, paths, RunOptions(fresh=fresh, local=True))
    second = drive(sweep)
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 2
    assert f"pid {driver.pid}" in output
    driver.kill()
    driver.wait(timeout=20)
    before = read_figures(paths).records
    assert 2 <= len(before) < 12
    screen = ActingScreen()
    outcome = run(sweep, paths, RunOptions(local=True), screen=screen)
    assert f"(pid {driver.pid}, since" in screen.notes[0]
    assert "is dead; this process continues the sweep" in screen.notes[0]
    assert not paths.owner.exists()
    # Both sweeps use the same measured latencies: two measurements could rank two depths differently.
    shutil.copytree(paths.cache, tmp_path / "undisturbed" / "cache")
    undisturbed = run(
        make_sweep(**search_fields(12)), SweepPaths(tmp_path / "undisturbed", "tiny"), RunOptions(local=True)
    )
    assert without_clock_metrics(outcome.figures.records) == without_clock_metrics(undisturbed.figures.records)
    completed = [record for record in before if record.state == "completed"]
    numbers = {record.number for record in completed}
    assert [record for record in outcome.figures.records if record.number in numbers] == completed


def test_a_damaged_journal_is_refused_and_no_file_changes(make_sweep: MakeSweep, paths: SweepPaths) -> None:
    run(make_sweep(**search_fields(1)), paths, RunOptions(local=True))
    lines = paths.journal.read_bytes().splitlines(keepends=True)
    middle = len(lines) // 2
    paths.journal.write_bytes(b"".join([*lines[:middle], b"\0\0\0\0rubbish\n", *lines[middle:]]))
    before = {path: path.read_bytes() for path in paths.root.rglob("*") if path.is_file()}
    with pytest.raises(StorageError, match=rf"journal\.log: line {middle + 1} is damaged: .*rubbish") as caught:
        run(make_sweep(**search_fields(2)), paths, RunOptions(local=True))
    assert caught.value.exit_code == 2
    assert {path: path.read_bytes() for path in paths.root.rglob("*") if path.is_file()} == before


# Databases ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_waits_for_a_sqlite_ledger_that_is_locked_for_half_a_minute(
    make_sweep: MakeSweep, paths: SweepPaths, tmp_path: Path
) -> None:
    file, free = tmp_path / "ledger.db", threading.Event()

    def lock() -> None:
        holder = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")

        def release() -> None:
            free.set()
            holder.execute("ROLLBACK")
            holder.close()

        threading.Timer(30, release).start()

    sweep = make_sweep(**search_fields(4, ledger=f"sqlite:///{file}"))
    outcome = run(sweep, paths, RunOptions(local=True), screen=ActingScreen(1, lock))
    assert free.wait(60)
    undisturbed = run(
        make_sweep(**search_fields(4)), SweepPaths(tmp_path / "undisturbed", "tiny"), RunOptions(local=True)
    )
    assert without_clock_metrics(outcome.figures.records) == without_clock_metrics(undisturbed.figures.records)
    assert {record.state for record in outcome.figures.records} == {"completed"}
    assert without_clock_metrics(read_figures(paths).records) == without_clock_metrics(undisturbed.figures.records)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL server for the tests of this module, with a password."""
    with postgres_cluster() as running:
        yield running


@pytest.fixture
def database(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("PGPASSWORD", cluster.password)
    cluster.start()
    return cluster


@pytest.mark.slow
def test_a_sweep_in_postgresql(make_sweep: MakeSweep, paths: SweepPaths, database: Cluster, tmp_path: Path) -> None:
    """Extended by trials and by a longer list, the table is the same as in a file; the password is in no file."""
    space = {"student.depth": [1, 2], "training.learning_rate": [1e-3, 3e-3]}
    longer = {"student.depth": [1, 2, 3], "training.learning_rate": [1e-3, 3e-3]}
    url = database.url("extended")
    for trials, each_space in ((2, space), (4, space), (8, longer)):
        outcome = run(make_sweep(**search_fields(trials, ledger=url), space=each_space), paths, RunOptions(local=True))
    in_file = SweepPaths(tmp_path / "file", "tiny")
    for trials, each_space in ((4, space), (8, longer)):
        expected = run(make_sweep(**search_fields(trials), space=each_space), in_file, RunOptions(local=True))
    assert without_clock_metrics(outcome.figures.records) == without_clock_metrics(expected.figures.records)
    assert 3 in {record.params["student.depth"] for record in outcome.figures.records[4:]}
    assert not paths.journal.exists()
    result = CliRunner().invoke(app, ["show", str(paths.root)], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert result.output.count("completed") == 8
    study = optuna.load_study(study_name="tiny", storage=url)
    assert {trial.distributions["student.depth"].choices for trial in study.trials} == {(1, 2, 3)}  # type: ignore
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or database.password.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_a_sweep_waits_for_a_postgresql_server_that_is_restarted(
    make_sweep: MakeSweep, paths: SweepPaths, database: Cluster, tmp_path: Path
) -> None:
    def restart() -> None:
        database.stop()
        threading.Timer(5, database.start).start()

    sweep = make_sweep(**search_fields(4, ledger=database.url("restarted")))
    outcome = run(sweep, paths, RunOptions(local=True), screen=ActingScreen(1, restart))
    undisturbed = run(
        make_sweep(**search_fields(4)), SweepPaths(tmp_path / "undisturbed", "tiny"), RunOptions(local=True)
    )
    assert without_clock_metrics(outcome.figures.records) == without_clock_metrics(undisturbed.figures.records)


@pytest.mark.slow
def test_a_sweep_in_postgresql_continues_after_its_driver_is_killed(
    make_sweep: MakeSweep,
    drive: Callable[[Sweep], subprocess.Popen[str]],
    paths: SweepPaths,
    database: Cluster,
    tmp_path: Path,
) -> None:
    sweep = make_sweep(**search_fields(8, ledger=database.url("killed")))
    driver = drive(sweep)
    wait_for(lambda: count_ended(paths) >= 2, "two trials")
    driver.kill()
    driver.wait(timeout=20)
    assert len(read_figures(paths).records) < 8
    outcome = run(sweep, paths, RunOptions(local=True))
    undisturbed = run(
        make_sweep(**search_fields(8)), SweepPaths(tmp_path / "undisturbed", "tiny"), RunOptions(local=True)
    )
    assert without_clock_metrics(outcome.figures.records) == without_clock_metrics(undisturbed.figures.records)


@pytest.mark.slow
def test_a_postgresql_server_that_is_down_is_named(
    make_sweep: MakeSweep, paths: SweepPaths, database: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make_sweep(**search_fields(2, ledger=database.url("down")))
    run(sweep, paths, RunOptions(local=True))
    monkeypatch.setenv("PGPASSWORD", "wrong")
    with pytest.raises(StorageError, match=r"ledger postgresql://.*: cannot be used .*password authentication failed"):
        run(sweep, paths, RunOptions(local=True))
    database.stop()
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"ledger postgresql://.*: cannot be used .*Connection refused") as caught:
        run(sweep, paths, RunOptions(local=True))
    assert time.monotonic() - start < 20
    assert caught.value.exit_code == 2
    monkeypatch.setenv("PGPASSWORD", database.password)
    database.start()
    assert len(run(sweep, paths, RunOptions(local=True)).figures.records) == 2


@pytest.mark.slow
def test_two_storages_in_one_postgresql_do_not_mix(
    make_sweep: MakeSweep, paths: SweepPaths, database: Cluster, tmp_path: Path
) -> None:
    sweep = make_sweep(**search_fields(1, ledger=database.url("shared")))
    run(sweep, paths, RunOptions(local=True))
    with pytest.raises(StorageError, match="'tiny' in it belongs to another folder"):
        run(sweep, SweepPaths(tmp_path / "other", "tiny"), RunOptions(local=True))
    run(sweep.with_changes({"name": "other"}), SweepPaths(tmp_path / "other", "other"), RunOptions(local=True))
    moved = shutil.copytree(paths.storage, tmp_path / "moved")
    shutil.rmtree(paths.storage)
    assert len(run(sweep, SweepPaths(moved, "tiny"), RunOptions(local=True)).figures.records) == 1
