"""Where the output of a worker goes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.safe_text.hostile import assert_no_control_characters

SCRIPT = """
import logging, os, sys, warnings
from pathlib import Path
from kdray.slots.serving import _redirect_output
os.umask(0o027)
_redirect_output(Path(sys.argv[1]))
print("output", flush=True)
"""
ERROR = """
try:
    raise ValueError("label \\x1b[2J at postgresql://anna:s3cret@host/x")
except ValueError:
    logging.getLogger("kdray.slots.serving").exception("trial 1\\nkdray: all is well")
warnings.warn("a \\x9b31m label")
"""


def write_log(path: Path, script: str = SCRIPT) -> str:
    """Let another process write into the log at this path. Returns what it wrote to its own output instead."""
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_the_output_of_a_worker_is_added_to_its_log_with_the_mode_that_the_umask_allows(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "slot-0-rank-0.log"
    assert [write_log(log) for _ in range(2)] == ["", ""]
    assert log.read_text() == "output\n" * 2
    assert log.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("content", [None, "private\n"])
def test_a_link_in_the_place_of_a_log_is_not_followed(tmp_path: Path, content: str | None) -> None:
    target, log = tmp_path / "target", tmp_path / "slot-0-rank-0.log"
    if content is not None:
        target.write_text(content)
    log.symlink_to(target)
    assert write_log(log) == "output\n"
    assert (target.read_text() if target.exists() else None) == content


def test_records_in_the_log_of_a_worker_have_no_secrets_and_no_control_characters(tmp_path: Path) -> None:
    log = tmp_path / "slot-0-rank-0.log"
    assert write_log(log, SCRIPT + ERROR) == ""
    text = log.read_text()
    assert "ValueError: label \\x1b[2J at postgresql://***@host/x" in text
    assert "a \\x9b31m label" in text
    assert "\n    kdray: all is well" in text
    assert_no_control_characters(text)
