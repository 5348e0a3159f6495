"""The spool: no change is lost when the process ends, and one process at a time sends the changes."""

import json
import os
from pathlib import Path

import pytest

from kdray.errors import StorageError
from kdray.storage.paths import SweepPaths
from kdray.tracking.content import Point, RunContent
from kdray.tracking.settings import Tracking
from kdray.tracking.spool import Spool, TrackingTarget

FIRST = RunContent("trial 000", 100.0, status="RUNNING", params={"depth": "2"})
SECOND = RunContent(metrics={("accuracy", 10): Point(0.8, 105_000)}, status="FINISHED", ended=106.0)


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    return SweepPaths(tmp_path, "films")


def test_the_next_process_reads_what_was_appended(paths: SweepPaths) -> None:
    with Spool(paths) as spool:
        spool.append(None, RunContent("films"))
        spool.append(0, FIRST)
        spool.append(0, SECOND)
        assert len(paths.spool.read_text().splitlines()) == 3  # before it is closed
    with Spool(paths) as spool:
        assert spool.read() == [(None, RunContent("films")), (0, FIRST), (0, SECOND)]
        assert json.loads(paths.spool.read_text().splitlines()[-1]) == {
            "run": 0,
            "ended": 106.0,
            "status": "FINISHED",
            "metrics": [["accuracy", 0.8, 105000, 10]],
        }


def test_an_incomplete_line_is_cut_off_and_a_line_without_json_is_left_out(
    paths: SweepPaths, caplog: pytest.LogCaptureFixture
) -> None:
    with Spool(paths) as spool:
        spool.append(0, FIRST)
    with paths.spool.open("ab") as file:
        file.write(b'\x00\x00 garbage\n{"run": 0, "metr')
    with Spool(paths) as spool:
        assert spool.read() == [(0, FIRST)]
        spool.append(0, SECOND)
    with Spool(paths) as spool:
        assert spool.read() == [(0, FIRST), (0, SECOND)]
    assert "line 2 cannot be read" in caplog.text


def test_a_line_that_does_not_fit_on_the_disk_leaves_nothing_in_the_file(
    paths: SweepPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Spool(paths) as spool:
        spool.append(0, FIRST)
        write = os.write
        monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:7]))
        with pytest.raises(OSError, match="only 7 of"):
            spool.append(0, SECOND)
        monkeypatch.undo()
        spool.append(0, SECOND)
        assert spool.read() == [(0, FIRST), (0, SECOND)]


def test_an_empty_spool_leaves_no_file(paths: SweepPaths) -> None:
    with Spool(paths) as spool:
        spool.append(0, FIRST)
        spool.clear()
    assert not paths.spool.exists()


def test_one_process_at_a_time_opens_the_spool(paths: SweepPaths) -> None:
    with Spool(paths), pytest.raises(StorageError, match="another process is sending this sweep to MLflow"):
        Spool(paths)
    Spool(paths).close()


def test_the_target_is_written_without_secrets(paths: SweepPaths) -> None:
    assert TrackingTarget.read(paths) is None
    tracking = Tracking(uri="postgresql://me:secret@db/x", experiment="mine", timeout_s=3, patience_s=4)
    TrackingTarget(tracking, "failed").write(paths)
    assert "secret" not in paths.tracking_target.read_text()
    masked = tracking.model_copy(update={"uri": "postgresql://***@db/x"})
    assert TrackingTarget.read(paths) == TrackingTarget(masked, "failed")
