"""Processes of a sweep on Ray that die, hang or get a signal: the table is the same as without the fault."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kdray.training.checkpoint_files import read_checkpoint
from tests.faults.sweep_process import LIMIT_S, SweepProcess, wait_for, without_clock_metrics

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.mark.parametrize("victim", ["RayTrainWorker", "TrainController", "ImplicitFunc"])  # the last is Tune's
def test_a_killed_process_loses_no_trial(sweep: SweepProcess, expected_table: list[Any], victim: str) -> None:
    sweep.start()
    sweep.wait_for_running_trial()
    sweep.kill(f"ray::{victim}")
    sweep.end()
    sweep.assert_sound()
    assert without_clock_metrics(sweep.records()) == expected_table


def test_a_killed_rank_of_two_loses_no_trial(sweep: SweepProcess) -> None:
    sweep.start("--set", "slots.workers=2", slots=1)
    sweep.wait_for_running_trial()
    sweep.kill("ray::RayTrainWorker")
    sweep.end()
    sweep.assert_sound()


def test_a_killed_board_ends_the_sweep_and_the_same_command_continues_it(
    sweep: SweepProcess, expected_table: list[Any]
) -> None:
    sweep.start()
    trial = sweep.wait_for_running_trial()
    sweep.kill("ray::Board")
    sweep.end(1)
    assert "the same command continues from there" in sweep.output
    assert "Traceback" not in sweep.output
    wait_for(lambda: not sweep.processes(), "all processes have ended")
    histories = {record.number: record.history for record in sweep.records()}
    assert len(histories[trial.number]) >= len(trial.history)
    sweep.run()
    sweep.assert_sound()
    assert without_clock_metrics(sweep.records()) == expected_table


def test_a_worker_that_hangs_is_noticed_and_replaced(sweep: SweepProcess, expected_table: list[Any]) -> None:
    sweep.start("--set", "slots.progress_timeout_s=6")
    sweep.wait_for_running_trial()
    pid = sweep.kill("ray::RayTrainWorker", signal.SIGSTOP)
    sweep.end()
    assert not Path(f"/proc/{pid}").exists()
    sweep.assert_sound()
    assert without_clock_metrics(sweep.records()) == expected_table


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_sweep_and_the_same_command_continues_it(
    sweep: SweepProcess, expected_table: list[Any], number: signal.Signals
) -> None:
    driver = sweep.start()
    trial = sweep.wait_for_running_trial()
    driver.send_signal(number)
    signalled = time.monotonic()
    sweep.end(130)
    assert time.monotonic() - signalled < 30
    assert sweep.paths.student(trial.number).with_name("checkpoint.pt").exists()
    (command,) = re.findall(r"To continue from here:\n    (.*)", sweep.output)
    assert command == f"python {sweep.script} " + " ".join(driver.args[2:])  # type: ignore[index]
    wait_for(lambda: not sweep.processes(), "all processes have ended")
    sweep.run()
    sweep.assert_sound()
    assert without_clock_metrics(sweep.records()) == expected_table


def test_a_second_signal_ends_the_sweep_at_once(sweep: SweepProcess, expected_table: list[Any]) -> None:
    driver = sweep.start()
    sweep.wait_for_running_trial()
    driver.send_signal(signal.SIGTERM)
    wait_for(lambda: "Stopping" in sweep.output, "the message about the first signal")
    driver.send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    sweep.end(130)
    assert time.monotonic() - signalled < 2
    wait_for(lambda: not sweep.processes(), "all processes have ended")
    sweep.run()
    sweep.assert_sound()
    assert without_clock_metrics(sweep.records()) == expected_table


WRITING = """
import sys
from pathlib import Path
import torch
from kdray.training.checkpoint_files import write_checkpoint
print("ready", flush=True)
for number in range(1000):
    write_checkpoint(Path(sys.argv[1]), {"number": number, "weights": torch.full((4_000_000,), float(number))})
"""


def test_an_incomplete_checkpoint_is_never_used(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for _ in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITING, str(path)], stdout=subprocess.PIPE, text=True)
        wait_for(path.exists, "a first checkpoint")
        wait_for(lambda: list(tmp_path.glob(".checkpoint*")), "an incomplete checkpoint", LIMIT_S)
        writer.kill()
        writer.wait(LIMIT_S)
        state = read_checkpoint(path)
        assert state["weights"].eq(state["number"]).all()
        os.unlink(path)
        for incomplete in tmp_path.glob(".checkpoint*"):
            incomplete.unlink()
