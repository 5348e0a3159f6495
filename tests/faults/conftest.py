"""The sweep that the fault tests break, and its table when nothing befalls it."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdray.models.pretrained import Pretrained
from tests.faults.sweep_process import SWEEP, SweepProcess, numbers

RECOVERIES = pytest.StashKey[dict[str, list[float]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RECOVERIES] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """How long it took after each fault until work went on: the figures of docs/reliability.md."""
    if told := {test: seconds for test, seconds in config.stash[RECOVERIES].items() if seconds}:
        terminalreporter.section("time to recover")
        for test, seconds in told.items():
            terminalreporter.write_line(f"{', '.join(f'{each:.1f} s' for each in seconds)}  {test}")


@pytest.fixture
def recovered(request: pytest.FixtureRequest) -> Callable[[float], None]:
    """Takes note of how many seconds it took after a fault until work went on."""
    return request.config.stash[RECOVERIES].setdefault(request.node.name, []).append


@pytest.fixture(scope="session")
def night_script(data_folder: Path, teacher: Pretrained, tmp_path_factory: pytest.TempPathFactory) -> str:
    return SWEEP.format(data=str(data_folder), teacher=str(teacher.folder))


@pytest.fixture
def night(night_script: str, tmp_path: Path, recovered: Callable[[float], None]) -> Iterator[SweepProcess]:
    """A sweep of six trials, of three epochs each; whatever it started is ended."""
    script = tmp_path / "night.py"
    script.write_text(night_script)
    begun = SweepProcess(script, tmp_path / "storage")
    yield begun
    for pid in begun.processes():
        os.kill(pid, signal.SIGKILL)
    for seconds in begun.recoveries:
        recovered(seconds)


@pytest.fixture(scope="session")
def undisturbed(night_script: str, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The table of the sweep that nothing befell, on one slot in its own process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "night.py").write_text(night_script)
    sweep = SweepProcess(folder / "night.py", folder / "storage")
    sweep.run("--local", slots=1)
    return numbers(sweep.records())
