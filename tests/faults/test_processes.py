"""Processes that die, hang or are told to stop in the middle of a sweep on Ray: the table is that of a quiet night."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kdray.training.checkpoint import read_checkpoint
from tests.faults.sweep_process import LIMIT_S, SweepProcess, numbers, until

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.mark.parametrize("victim", ["RayTrainWorker", "TrainController", "ImplicitFunc"])  # the last is Tune's
def test_a_killed_process_costs_no_trial(night: SweepProcess, undisturbed: list[Any], victim: str) -> None:
    night.begin()
    night.trial_in_its_middle()
    night.kill(f"ray::{victim}")
    night.end()
    night.is_sound()
    assert numbers(night.records()) == undisturbed


def test_a_killed_rank_of_two_costs_no_trial(night: SweepProcess) -> None:
    night.begin("--set", "slots.workers=2", slots=1)
    night.trial_in_its_middle()
    night.kill("ray::RayTrainWorker")
    night.end()
    night.is_sound()


def test_a_killed_board_ends_the_sweep_which_goes_on_from_there(night: SweepProcess, undisturbed: list[Any]) -> None:
    night.begin()
    middle = night.trial_in_its_middle()
    night.kill("ray::Board")
    night.end(1)
    assert "the same command goes on from there" in night.said
    assert "Traceback" not in night.said
    until(lambda: not night.processes(), "all processes have ended")
    kept = {record.number: record.history for record in night.records()}
    assert len(kept[middle.number]) >= len(middle.history)
    night.run()
    night.is_sound()
    assert numbers(night.records()) == undisturbed


def test_a_worker_that_hangs_is_noticed_and_replaced(night: SweepProcess, undisturbed: list[Any]) -> None:
    night.begin("--set", "slots.progress_timeout_s=6")
    night.trial_in_its_middle()
    stopped = night.kill("ray::RayTrainWorker", signal.SIGSTOP)
    night.end()
    assert not Path(f"/proc/{stopped}").exists()
    night.is_sound()
    assert numbers(night.records()) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_on_request_is_clean_and_can_be_gone_on_with(
    night: SweepProcess, undisturbed: list[Any], number: signal.Signals
) -> None:
    driver = night.begin()
    trial = night.trial_in_its_middle()
    driver.send_signal(number)
    asked = time.monotonic()
    night.end(130)
    assert time.monotonic() - asked < 30
    assert night.paths.student(trial.number).with_name("checkpoint.pt").exists()
    (command,) = re.findall(r"To go on from here:\n    (.*)", night.said)
    assert command == f"python {night.script} " + " ".join(driver.args[2:])  # type: ignore[index]
    until(lambda: not night.processes(), "all processes have ended")
    night.run()
    night.is_sound()
    assert numbers(night.records()) == undisturbed


def test_a_second_signal_ends_it_at_once(night: SweepProcess, undisturbed: list[Any]) -> None:
    driver = night.begin()
    night.trial_in_its_middle()
    driver.send_signal(signal.SIGTERM)
    until(lambda: "Stopping" in night.said, "the first signal is heard")
    driver.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    night.end(130)
    assert time.monotonic() - asked < 2
    until(lambda: not night.processes(), "all processes have ended")
    night.run()
    night.is_sound()
    assert numbers(night.records()) == undisturbed


WRITING = """
import sys
from pathlib import Path
import torch
from kdray.training.checkpoint import write_checkpoint
print("ready", flush=True)
for number in range(1000):
    write_checkpoint(Path(sys.argv[1]), {"number": number, "weights": torch.full((4_000_000,), float(number))})
"""


def test_a_checkpoint_that_was_being_written_is_never_used(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for _ in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITING, str(path)], stdout=subprocess.PIPE, text=True)
        until(path.exists, "a first checkpoint")
        until(lambda: list(tmp_path.glob(".checkpoint*")), "a half checkpoint", LIMIT_S)
        writer.kill()
        writer.wait(LIMIT_S)
        state = read_checkpoint(path)
        assert state["weights"].eq(state["number"]).all()
        os.unlink(path)
        for half in tmp_path.glob(".checkpoint*"):
            half.unlink()
