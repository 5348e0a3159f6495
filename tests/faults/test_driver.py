"""The driver dies, files are damaged, the storage is full: the same command continues, and the table is the same."""

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
from kdray.training.checkpoint_files import read_checkpoint
from tests.faults.sweep_process import CLOCK_METRICS, LIMIT_S, SweepProcess, wait_for, without_clock_metrics

pytestmark = pytest.mark.faults
STEPS_PER_EPOCH = 40


def assert_checkpoints_are_recent(sweep: SweepProcess) -> None:
    """Check that the checkpoint of each running trial contains all complete epochs but the last one."""
    for record in sweep.records():
        if record.state == "running" and len(record.history) > 1:
            path = sweep.paths.student(record.number).with_name("checkpoint.pt")
            if path.exists():  # without a checkpoint the trial has ended, but its end is not recorded
                assert read_checkpoint(path)["at"]["step"] >= (len(record.history) - 1) * STEPS_PER_EPOCH


@pytest.mark.slow
def test_a_driver_killed_ten_times_gives_the_same_table(sweep: SweepProcess, expected_table: list[Any]) -> None:
    draw = random.Random(0)
    kills = 0
    while kills < 10:
        driver = sweep.start("--local", slots=1)
        length = len(sweep.output)
        wait_for(
            lambda length=length, driver=driver: len(sweep.output) > length or driver.poll() is not None, "an output"
        )
        time.sleep(draw.uniform(0, 1.5))
        if driver.poll() is not None:
            break
        driver.kill()
        driver.wait(LIMIT_S)
        kills += 1
        assert_checkpoints_are_recent(sweep)
    assert kills > 3
    sweep.run("--local", slots=1)
    sweep.assert_sound()
    assert without_clock_metrics(sweep.records()) == expected_table


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
def test_a_trial_whose_end_was_not_recorded_is_not_trained_again(
    sweep: SweepProcess, expected_table: list[Any]
) -> None:
    sweep.script.write_text(COUNTING + DYING + sweep.script.read_text())
    sweep.run("--local", slots=1, expected=-signal.SIGKILL, DIE="1")
    fits = Path(sweep.folder, "fits.txt")
    assert len(fits.read_text().split()) == 3
    assert sweep.records()[2].state == "running"
    sweep.run("--local", slots=1)
    assert len(fits.read_text().split()) == 6
    assert sweep.records()[2].attempts == 2
    sweep.assert_sound()
    assert without_clock_metrics(sweep.records()) == expected_table


DYING_IN_LABELLING = """
import os, signal
from kdray.teacher import transfer

label = transfer.LabelShard.__call__


def label_or_die(shard, worker):
    if os.environ.get("DIE") == f"{shard.split} {shard.start}":
        os.kill(os.getpid(), signal.SIGKILL)
    yield from label(shard, worker)


transfer.LabelShard.__call__ = label_or_die
"""
"""Put in front of a sweep, it kills the process that labels the file of the split and the first row in DIE."""

DYING_IN_RECORDING = """
import os, signal
from kdray.teacher import state_files

save = state_files.save_file


def save_or_die(tensors, file):
    save(tensors, file)
    if os.environ.get("DIE") and f"{int(os.environ['DIE']):09d}" in str(file):
        os.kill(os.getpid(), signal.SIGKILL)


state_files.save_file = save_or_die
"""
"""Put in front of a sweep, it kills the process when it has written the hidden states from the row in DIE on, and
before their file has its name."""

DYING_AGAIN = """
from kdray.stages.retraining import RerunLog

record = RerunLog.record

def dying(self, run, result, figures):
    if f"{run.role}, seed {run.seed}" == os.environ.get("DIE"):
        os.kill(os.getpid(), signal.SIGKILL)
    return record(self, run, result, figures)

RerunLog.record = dying
"""
CONFIRMED = ("--local", "--set", "confirm.controls=true", "--set", "confirm.candidates=1", "--set", "confirm.seeds=1")


@pytest.mark.slow
def test_a_driver_killed_during_controls_and_confirmation_trains_no_finished_student_again(
    sweep: SweepProcess,
) -> None:
    """The driver dies twice: each time after a rerun has ended, and before the end is recorded."""
    undisturbed = SweepProcess(sweep.script, sweep.folder / "undisturbed")
    undisturbed.run(*CONFIRMED, slots=1)
    # Both sweeps use the same measured latencies: two measurements could give two fronts.
    shutil.copytree(undisturbed.storage / "cache", sweep.storage / "cache")
    sweep.script.write_text(COUNTING + DYING_AGAIN + sweep.script.read_text())
    sweep.run(*CONFIRMED, slots=1, expected=-signal.SIGKILL, DIE="default distillation, seed 0")
    sweep.run(*CONFIRMED, slots=1, expected=-signal.SIGKILL, DIE="candidate, seed 1")
    sweep.run(*CONFIRMED, slots=1)
    assert rerun_figures(sweep) == rerun_figures(undisturbed)
    reruns = rerun_figures(sweep)["runs"]
    assert set(reruns) == {"labels only", "default distillation", "candidate"}
    fits = len(Path(sweep.folder, "fits.txt").read_text().split())
    # A rerun that was running when the driver died was started once more: at most one for each death.
    assert 0 <= fits - (6 + sum(reruns.values())) <= 2
    sweep.assert_nothing_left()


def rerun_figures(sweep: SweepProcess) -> dict[str, Any]:
    """The figures of controls and confirmation, and the number of their finished runs in MLflow, by role."""
    choice = read_json(sweep.paths.choice)
    for control in choice["controls"]:
        control["metrics"] = {name: value for name, value in control["metrics"].items() if name not in CLOCK_METRICS}
    client = MlflowClient(f"sqlite:///{sweep.paths.tracking_database}")
    (experiment,) = (each for each in client.search_experiments() if each.name == "kdray")
    runs = client.search_runs([experiment.experiment_id], "tags.`kdray.role` != 'search'")
    counts = Counter(run.data.tags["kdray.role"] for run in runs)
    assert all(run.info.status == "FINISHED" and "test.accuracy" in run.data.metrics for run in runs)
    return {"runs": counts, "controls": choice["controls"], "confirmed": choice["confirmation"]["confirmed"]}


@pytest.mark.slow
def test_ctrl_c_in_one_process_changes_no_result(sweep: SweepProcess, expected_table: list[Any]) -> None:
    driver = sweep.start("--local", slots=1)
    trial = sweep.wait_for_running_trial()
    driver.send_signal(signal.SIGINT)
    sweep.end(130)
    sweep.run("--local", slots=1)
    sweep.assert_sound()
    assert sweep.records()[trial.number].attempts <= 2
    assert without_clock_metrics(sweep.records()) == expected_table


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a byte flipped", "truncated"])
def test_a_damaged_shard_is_reported_and_labelled_again(sweep: SweepProcess, damage: str) -> None:
    sweep.run("--local", "--trials", "1", slots=1)
    shard = next(sweep.storage.glob("cache/transfers/*/train-*.arrow"))
    intact = bytearray(shard.read_bytes())
    damaged = bytearray(intact)
    damaged[-200] ^= 1
    shard.write_bytes(damaged if damage == "a byte flipped" else damaged[:-300])
    sweep.run("--local", "--trials", "2", slots=1)
    assert f"{shard.name}: damaged; its rows are labelled again" in sweep.output
    assert shard.read_bytes() == intact
    sweep.assert_sound(["completed"] * 2)


@pytest.mark.slow
def test_labelling_continues_after_the_last_complete_file(sweep: SweepProcess) -> None:
    """The driver dies while the teacher answers texts without labels."""
    few = ("--local", "--set", "data.max_labelled=40", "--set", "transfer.shard_rows=32", "--set", "student.depth=1")
    undisturbed = SweepProcess(sweep.script, sweep.folder / "undisturbed")
    undisturbed.run(*few, "--trials", "2", slots=1)
    sweep.script.write_text(DYING_IN_LABELLING + sweep.script.read_text())
    sweep.run(*few, "--trials", "2", slots=1, expected=-signal.SIGKILL, DIE="train 160")
    shards = sorted(sweep.storage.glob("cache/transfers/*/train-*.arrow"))
    assert [int(shard.stem.rpartition("-")[2]) for shard in shards] == [0, 32, 64, 96, 128]
    written = [shard.stat().st_mtime_ns for shard in shards]
    sweep.run(*few, "--trials", "2", slots=1)
    assert [shard.stat().st_mtime_ns for shard in shards] == written
    assert without_clock_metrics(sweep.records()) == without_clock_metrics(undisturbed.records())
    sweep.assert_sound(["completed"] * 2)


@pytest.mark.slow
def test_hidden_states_are_recorded_from_the_last_complete_file_on(sweep: SweepProcess) -> None:
    """The driver dies while it writes a file with hidden states, and a worker on Ray dies after some files."""
    settings = ("--set", "distillation.hidden_mse=0.1", "--set", "transfer.signal=stored", "--set", "student.depth=1")
    settings += ("--set", "transfer.shard_rows=16", "--trials", "2")
    undisturbed = SweepProcess(sweep.script, sweep.folder / "undisturbed")
    undisturbed.run("--local", *settings, slots=1)
    on_ray = SweepProcess(sweep.script, sweep.folder / "on-ray", mark=sweep.mark)
    on_ray.start(*settings, slots=1)
    wait_for(lambda: list(on_ray.storage.glob("cache/states/*/*.safetensors")), "a file with hidden states")
    on_ray.kill("RayTrainWorker")
    on_ray.end()
    sweep.script.write_text(DYING_IN_RECORDING + sweep.script.read_text())
    sweep.run("--local", *settings, slots=1, expected=-signal.SIGKILL, DIE="160")
    files = sorted(sweep.storage.glob("cache/states/*/*.safetensors"))
    assert [int(file.stem) for file in files] == list(range(0, 160, 16))
    written = [file.stat().st_mtime_ns for file in files]
    sweep.run("--local", *settings, slots=1)
    assert [file.stat().st_mtime_ns for file in files] == written
    for each in (sweep, on_ray):
        # What a killed writer has left is deleted by a later session, when it has not changed for an hour.
        for abandoned in each.storage.glob("cache/states/*/.*"):
            os.utime(abandoned, (0, 0))
        each.run("--local", *settings, slots=1)
        assert without_clock_metrics(each.records()) == without_clock_metrics(undisturbed.records())
        each.assert_sound(["completed"] * 2)


@pytest.mark.slow
def test_only_a_diverging_configuration_fails_and_its_reason_is_recorded(sweep: SweepProcess) -> None:
    sweep.run("--local", "--set", "space.training.learning_rate=[0.001,1e30]", slots=1)
    states = ["failed" if record.params["training.learning_rate"] > 1 else "completed" for record in sweep.records()]
    assert set(states) == {"completed", "failed"}
    sweep.assert_sound(states)
    errors = [record.error for record in sweep.records() if record.state == "failed"]
    assert all("not finite" in error and "try a lower learning rate" in error for error in errors if error)
    assert None not in errors


@pytest.mark.slow
def test_more_gpus_than_the_cluster_has_are_refused(sweep: SweepProcess) -> None:
    sweep.run("--set", "slots.count=99", "--set", "slots.gpus=1", expected=2)
    assert "asked for 99 slots of 1 worker with" in sweep.output
    assert not sweep.records()
    sweep.assert_nothing_left()


@pytest.fixture
def small_storage(sweep: SweepProcess) -> Iterator[SweepProcess]:
    """A sweep whose storage is a file system of its own, with room for the cached files and one or two students."""
    sweep.storage.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(sweep.storage)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield sweep
    subprocess.run(["umount", "-l", str(sweep.storage)], check=True)


def remount(sweep: SweepProcess, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(sweep.storage)], check=True)


def fill(sweep: SweepProcess, free: int) -> Path:
    """Fill the storage until this number of bytes is free. Returns the file that fills it."""
    filler = sweep.storage / "filler"
    status = os.statvfs(sweep.storage)
    with filler.open("wb") as file:
        file.write(b"0" * max(0, status.f_bavail * status.f_bsize - free))
    return filler


@pytest.mark.slow
def test_a_full_storage_is_named_and_the_sweep_continues_when_space_is_free(
    small_storage: SweepProcess, expected_table: list[Any]
) -> None:
    sweep = small_storage
    driver = sweep.start("--local", slots=1)
    sweep.wait_for_running_trial()
    driver.send_signal(signal.SIGSTOP)
    wait_for(lambda: "T (stopped)" in Path(f"/proc/{driver.pid}/status").read_text(), "the driver is stopped")
    filler = fill(sweep, 4096)
    driver.send_signal(signal.SIGCONT)
    sweep.end(StorageError.exit_code)
    assert str(sweep.storage) in sweep.output
    assert "No space left on device" in sweep.output
    assert "Traceback" not in sweep.output
    assert all(record.state in ("running", "completed") for record in sweep.records())
    filler.unlink()
    sweep.run("--local", slots=1)
    sweep.assert_sound()
    assert without_clock_metrics(sweep.records()) == expected_table


@pytest.mark.slow
def test_a_storage_that_becomes_read_only_is_named(small_storage: SweepProcess, expected_table: list[Any]) -> None:
    sweep = small_storage
    sweep.run("--local", "--trials", "2", slots=1)
    remount(sweep, "ro")
    sweep.run("--local", slots=1, expected=StorageError.exit_code)
    assert f"storage {sweep.storage}: cannot be written" in sweep.output
    assert [record.state for record in sweep.records()] == ["completed"] * 2
    remount(sweep, "rw")
    sweep.run("--local", slots=1)
    sweep.assert_sound()
    assert without_clock_metrics(sweep.records()) == expected_table
