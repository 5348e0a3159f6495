"""Fixtures: the sweep that the fault tests break, and its table without any fault."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdray.models.pretrained import Pretrained
from tests.faults.sweep_process import SWEEP, SweepProcess, without_clock_metrics

RECOVERIES = pytest.StashKey[dict[str, list[float]]]()
"""Name of a test -> the seconds of each of its recoveries."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RECOVERIES] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print how many seconds after each fault the work continued: the figures of docs/reliability.md."""
    if recoveries := {test: seconds for test, seconds in config.stash[RECOVERIES].items() if seconds}:
        terminalreporter.section("time to recover")
        for test, seconds in recoveries.items():
            terminalreporter.write_line(f"{', '.join(f'{each:.1f} s' for each in seconds)}  {test}")


@pytest.fixture
def record_recovery(request: pytest.FixtureRequest) -> Callable[[float], None]:
    """A function that records how many seconds after a fault the work continued."""
    return request.config.stash[RECOVERIES].setdefault(request.node.name, []).append


@pytest.fixture(scope="session")
def sweep_script(data_folder: Path, teacher: Pretrained, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of the sweep's script."""
    return SWEEP.format(data=str(data_folder), teacher=str(teacher.folder))


@pytest.fixture
def sweep(sweep_script: str, tmp_path: Path, record_recovery: Callable[[float], None]) -> Iterator[SweepProcess]:
    """A sweep of six trials with three epochs each. All of its processes are killed after the test."""
    script = tmp_path / "faulty.py"
    script.write_text(sweep_script)
    process = SweepProcess(script, tmp_path / "storage")
    yield process
    for pid in process.processes():
        os.kill(pid, signal.SIGKILL)
    for seconds in process.recoveries:
        record_recovery(seconds)


@pytest.fixture(scope="session")
def expected_table(sweep_script: str, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The table of the same sweep without any fault, run on one slot in the driver's process."""
    folder = tmp_path_factory.mktemp("without-faults")
    (folder / "faulty.py").write_text(sweep_script)
    process = SweepProcess(folder / "faulty.py", folder / "storage")
    process.run("--local", slots=1)
    return without_clock_metrics(process.records())
