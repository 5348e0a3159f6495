"""The driver dies, its files are damaged, its storage is full: the same command goes on, and the table is the same."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from kdray.errors import StorageError
from kdray.storage.files import read_json
from kdray.training.checkpoint import read_checkpoint
from tests.faults.sweep_process import LIMIT_S, TIMES, SweepProcess, numbers, until

pytestmark = pytest.mark.faults
STEPS_PER_EPOCH = 40


def not_much_to_redo(night: SweepProcess) -> None:
    """Of each trial that runs, all but the epoch it was in is in its checkpoint."""
    for record in night.records():
        if record.state == "running" and len(record.history) > 1:
            path = night.paths.student(record.number).with_name("checkpoint.pt")
            if path.exists():  # else it ended, and was not recorded
                assert read_checkpoint(path)["at"]["step"] >= (len(record.history) - 1) * STEPS_PER_EPOCH


@pytest.mark.slow
def test_a_driver_killed_ten_times_gives_the_table_of_one_that_was_not(
    night: SweepProcess, undisturbed: list[Any]
) -> None:
    draw = random.Random(0)
    killed = 0
    while killed < 10:
        driver = night.begin("--local", slots=1)
        said = len(night.said)
        until(lambda said=said, driver=driver: len(night.said) > said or driver.poll() is not None, "a word")
        time.sleep(draw.uniform(0, 1.5))
        if driver.poll() is not None:
            break
        driver.kill()
        driver.wait(LIMIT_S)
        killed += 1
        not_much_to_redo(night)
    assert killed > 3
    night.run("--local", slots=1)
    night.is_sound()
    assert numbers(night.records()) == undisturbed


COUNTING = """
import os, signal
import kdray.training.trial

fit = kdray.training.trial.fit

def counting(*arguments):
    with open("fits.txt", "a") as file:
        file.write("fit\\n")
    return fit(*arguments)

kdray.training.trial.fit = counting
"""
DYING = """
from kdray.search.ledger import Ledger

finish = Ledger.finish

def dying(self, number, state, error=None):
    if number == 2 and "DIE" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    return finish(self, number, state, error)

Ledger.finish = dying
"""


@pytest.mark.slow
def test_a_trial_that_ended_unrecorded_is_not_trained_again(night: SweepProcess, undisturbed: list[Any]) -> None:
    night.script.write_text(COUNTING + DYING + night.script.read_text())
    night.run("--local", slots=1, expected=-signal.SIGKILL, DIE="1")
    fits = Path(night.folder, "fits.txt")
    assert len(fits.read_text().split()) == 3
    assert night.records()[2].state == "running"
    night.run("--local", slots=1)
    assert len(fits.read_text().split()) == 6
    assert night.records()[2].attempts == 2
    night.is_sound()
    assert numbers(night.records()) == undisturbed


DYING_AGAIN = """
from kdray.stages.retraining import RerunLog

record = RerunLog.record

def dying(self, run, retrained, figures):
    if f"{run.role}, seed {run.seed}" == os.environ.get("DIE"):
        os.kill(os.getpid(), signal.SIGKILL)
    return record(self, run, retrained, figures)

RerunLog.record = dying
"""
CONFIRMED = ("--local", "--set", "confirm.controls=true", "--set", "confirm.candidates=1", "--set", "confirm.seeds=1")


@pytest.mark.slow
def test_a_driver_killed_among_controls_and_confirmation_trains_none_again_that_ended_and_tells_all(
    night: SweepProcess,
) -> None:
    """It dies twice after a student has answered and before anybody was told."""
    quiet = SweepProcess(night.script, night.folder / "quiet")
    quiet.run(*CONFIRMED, slots=1)
    shutil.copytree(quiet.storage / "cache", night.storage / "cache")  # two clocks may make two fronts
    night.script.write_text(COUNTING + DYING_AGAIN + night.script.read_text())
    night.run(*CONFIRMED, slots=1, expected=-signal.SIGKILL, DIE="default distillation, seed 0")
    night.run(*CONFIRMED, slots=1, expected=-signal.SIGKILL, DIE="candidate, seed 1")
    night.run(*CONFIRMED, slots=1)
    assert again(night) == again(quiet)
    beside = again(night)["runs"]
    assert set(beside) == {"labels only", "default distillation", "candidate"}
    fits = len(Path(night.folder, "fits.txt").read_text().split())
    assert 0 <= fits - (6 + sum(beside.values())) <= 2  # what ran beside when the driver died was begun once more
    night.nothing_is_left()


def again(night: SweepProcess) -> dict[str, Any]:
    """What was trained outside the search: what it came to, and how many finished runs MLflow has of it."""
    choice = read_json(night.paths.choice)
    for control in choice["controls"]:
        control["metrics"] = {name: value for name, value in control["metrics"].items() if name not in TIMES}
    client = MlflowClient(f"sqlite:///{night.paths.tracking_database}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "kdray")
    told = client.search_runs([experiment.experiment_id], "tags.`kdray.role` != 'search'")
    runs = Counter(run.data.tags["kdray.role"] for run in told)
    assert all(run.info.status == "FINISHED" and "test.accuracy" in run.data.metrics for run in told)
    return {"runs": runs, "controls": choice["controls"], "confirmed": choice["confirmation"]["confirmed"]}


@pytest.mark.slow
def test_ctrl_c_in_one_process_keeps_the_step_it_was_at(night: SweepProcess, undisturbed: list[Any]) -> None:
    driver = night.begin("--local", slots=1)
    trial = night.trial_in_its_middle()
    driver.send_signal(signal.SIGINT)
    night.end(130)
    night.run("--local", slots=1)
    night.is_sound()
    assert night.records()[trial.number].attempts <= 2
    assert numbers(night.records()) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a byte flipped", "truncated"])
def test_a_damaged_shard_is_labelled_again_and_said(night: SweepProcess, damage: str) -> None:
    night.run("--local", "--trials", "1", slots=1)
    shard = next(night.storage.glob("cache/transfers/*/train-*.arrow"))
    whole = bytearray(shard.read_bytes())
    broken = bytearray(whole)
    broken[-200] ^= 1
    shard.write_bytes(broken if damage == "a byte flipped" else broken[:-300])
    night.run("--local", "--trials", "2", slots=1)
    assert f"{shard.name}: damaged; its rows are labelled again" in night.said
    assert shard.read_bytes() == whole
    night.is_sound(["completed"] * 2)


def test_a_configuration_that_diverges_fails_alone_with_its_reason(night: SweepProcess) -> None:
    night.run("--local", "--set", "space.training.learning_rate=[0.001,1e30]", slots=1)
    wild = [record.params["training.learning_rate"] > 1 for record in night.records()]
    assert 0 < sum(wild) < 6
    night.is_sound(["failed" if it_is else "completed" for it_is in wild])
    errors = [record.error for record in night.records() if record.state == "failed"]
    assert all("not finite" in error and "try a lower learning rate" in error for error in errors if error)
    assert None not in errors


def test_more_gpus_than_there_are_are_refused_within_seconds(night: SweepProcess) -> None:
    night.run("--set", "slots.count=99", "--set", "slots.gpus=1", expected=2)
    assert "asked for 99 slots of 1 worker with" in night.said
    assert not night.records()
    night.nothing_is_left()


@pytest.fixture
def small_storage(night: SweepProcess) -> Iterator[SweepProcess]:
    """The storage is a file system of its own, with room for a teacher's caches and a student or two."""
    night.storage.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(night.storage)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield night
    subprocess.run(["umount", "-l", str(night.storage)], check=True)


def remount(night: SweepProcess, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(night.storage)], check=True)


def fill(night: SweepProcess, free: int) -> Path:
    """Leave so many bytes free."""
    filler = night.storage / "filler"
    status = os.statvfs(night.storage)
    with filler.open("wb") as file:
        file.write(b"0" * max(0, status.f_bavail * status.f_bsize - free))
    return filler


@pytest.mark.slow
def test_a_full_storage_is_named_and_the_sweep_goes_on_when_there_is_room(
    small_storage: SweepProcess, undisturbed: list[Any]
) -> None:
    night = small_storage
    driver = night.begin("--local", slots=1)
    night.trial_in_its_middle()
    driver.send_signal(signal.SIGSTOP)
    until(lambda: "T (stopped)" in Path(f"/proc/{driver.pid}/status").read_text(), "the driver stands still")
    filler = fill(night, 4096)
    driver.send_signal(signal.SIGCONT)
    night.end(StorageError.exit_code)
    assert str(night.storage) in night.said
    assert "No space left on device" in night.said
    assert "Traceback" not in night.said
    assert all(record.state in ("running", "completed") for record in night.records())
    filler.unlink()
    night.run("--local", slots=1)
    night.is_sound()
    assert numbers(night.records()) == undisturbed


@pytest.mark.slow
def test_a_storage_that_becomes_read_only_is_named(small_storage: SweepProcess, undisturbed: list[Any]) -> None:
    night = small_storage
    night.run("--local", "--trials", "2", slots=1)
    remount(night, "ro")
    night.run("--local", slots=1, expected=StorageError.exit_code)
    assert f"storage {night.storage}: cannot be written" in night.said
    assert [record.state for record in night.records()] == ["completed"] * 2
    remount(night, "rw")
    night.run("--local", slots=1)
    night.is_sound()
    assert numbers(night.records()) == undisturbed
