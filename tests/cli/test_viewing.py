"""`kdray ui` leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SERVER = """
import os, pathlib, subprocess, sys, time
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()} {helper.pid}")
time.sleep(600)
"""
"""A server that starts a process of its own, as MLflow's does."""
LIMIT_S = 60


def is_running(process: int) -> bool:
    """Whether the process exists and has not ended."""
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until the function `condition` gives True; fail after a minute."""
    limit = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    "numbers",
    [
        [signal.SIGTERM],
        pytest.param([signal.SIGINT], marks=pytest.mark.slow),
        [signal.SIGTERM, signal.SIGTERM],
    ],
)
def test_a_signal_ends_the_server_and_its_processes(tmp_path: Path, numbers: list[signal.Signals]) -> None:
    """A second signal ends the command at once, and must not leave the server behind."""
    written = tmp_path / "processes"
    command = [sys.executable, "-c", SERVER, str(written)]
    script = f"from kdray.cli.viewing import _run_server; _run_server({command!r})"
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    started: list[int] = []
    try:
        wait_until(lambda: written.exists() and len(written.read_text().split()) == 2, "the server did not start")
        started = [int(each) for each in written.read_text().split()]
        for number in numbers:
            process.send_signal(number)
            # Long enough for the first one to be handled, and shorter than what `Popen.wait` grants a child after it.
            time.sleep(0.1)
        process.wait(LIMIT_S)
        wait_until(lambda: not any(map(is_running, started)), "the server outlived the command")
    finally:
        process.kill()
        process.wait(LIMIT_S)
        for each in filter(is_running, started):
            os.kill(each, signal.SIGKILL)
