"""The spool: no change is lost when the process ends, and one process at a time sends the changes."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kdray.errors import SpecError, StorageError
from kdray.storage import trust
from kdray.storage.files import write_json
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


@pytest.mark.parametrize("number", ["[]", "{}", '"a"', "true", "1.5"])
def test_a_line_of_no_run_is_left_out(paths: SweepPaths, number: str, caplog: pytest.LogCaptureFixture) -> None:
    paths.spool.parent.mkdir(parents=True)
    paths.spool.write_text(f'{{"run": {number}, "name": "x"}}\n{{"run": 0, "name": "y"}}\n{"[" * 100_000}\n')
    with Spool(paths) as spool:
        assert spool.read() == [(0, RunContent("y"))]
    assert "line 1 cannot be read" in caplog.text
    assert "line 3 cannot be read" in caplog.text


def test_a_folder_outside_of_the_sweep_is_refused(paths: SweepPaths) -> None:
    paths.spool.parent.mkdir(parents=True)
    paths.spool.write_text('{"run": 0, "artifacts": {"report": "/etc"}}\n')
    with Spool(paths) as spool, pytest.raises(StorageError, match=r"spool.jsonl, line 1: names a file '/etc'"):
        spool.read()


def test_a_pipe_in_place_of_the_spool_is_a_sentence(paths: SweepPaths) -> None:
    paths.spool.parent.mkdir(parents=True)
    os.mkfifo(paths.spool)
    with Spool(paths) as spool, pytest.raises(StorageError, match=r"spool\.jsonl: is not a regular file"):
        spool.read()


# The address of the store ---------------------------------------------------------------------------------------------

SERVER = "http://mlflow.example.com:5000"


def write_target(paths: SweepPaths, uri: object, **fields: object) -> None:
    """Write a target.json as anybody could."""
    write_json(paths.tracking_target, {"tracking": {"uri": uri, "experiment": "mine"}, "ending": None, **fields})


def remembered(paths: SweepPaths, given: str | None = None) -> Tracking:
    """The settings for the store of the sweep in a new process of the same user."""
    trust._accepted.clear()
    target = TrackingTarget.read(paths)
    assert target is not None
    return target.tracking_at(given, paths)


def test_the_target_remembers_settings_ending_and_address(paths: SweepPaths) -> None:
    assert TrackingTarget.read(paths) is None
    tracking = Tracking(uri=SERVER, experiment="mine", timeout_s=3, patience_s=4)
    TrackingTarget(tracking, "failed").write(paths)
    target = TrackingTarget.read(paths)
    assert target == TrackingTarget(tracking.model_copy(update={"uri": None}), "failed", SERVER)
    replace(target, ending="finished").write(paths)
    assert TrackingTarget.read(paths) == replace(target, ending="finished")


def test_a_remembered_address_is_not_used_unless_the_user_gives_it(
    paths: SweepPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_target(paths, SERVER)
    with pytest.raises(StorageError, match=f"target.json: names the MLflow store {SERVER}, which you have not given"):
        remembered(paths)
    assert remembered(paths, "http://other:1").uri == "http://other:1"
    with pytest.raises(StorageError, match="--tracking-uri"):
        remembered(paths)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    assert remembered(paths).uri == SERVER
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert remembered(paths, SERVER).uri == SERVER
    assert remembered(paths).uri == SERVER  # the user has given it before


@pytest.mark.parametrize("uri", ["http://***@h", "http://a:b@h", "postgresql://a:b@h/x", "https://h/?t=1"])
def test_a_remembered_address_with_a_secret_must_be_given_again(paths: SweepPaths, uri: str) -> None:
    write_target(paths, uri)
    with pytest.raises(SpecError, match="Give the address of the MLflow server, without the secret"):
        remembered(paths)
    assert remembered(paths, SERVER).uri == SERVER


def test_a_remembered_database_below_the_storage_is_used(paths: SweepPaths, tmp_path: Path) -> None:
    write_target(paths, f"sqlite:///{paths.storage}/own.db")
    assert remembered(paths).uri == f"sqlite:///{paths.storage}/own.db"
    (paths.storage / "link.db").symlink_to(tmp_path.parent / "another.db")
    for outside in (f"{paths.storage}/link.db", f"{paths.storage}/../another.db"):
        write_target(paths, f"sqlite:///{outside}")
        with pytest.raises(StorageError, match="which you have not given"):
            remembered(paths)


@pytest.mark.parametrize(
    "fields", [{"tracking": 7}, {"tracking": {"timeout_s": 0}}, {"tracking": {"uri": 7}}, {"ending": "x"}]
)
def test_a_damaged_target_is_a_sentence(paths: SweepPaths, fields: dict[str, object]) -> None:
    write_target(paths, None, **fields)
    with pytest.raises(StorageError, match=r"target\.json: is damaged"):
        TrackingTarget.read(paths)


@pytest.mark.parametrize(
    "uri",
    ["http://u:s3@cret@h", "http://u:s3/cret@h", "http://h/?api_key=s3cret", "http://h/#s3cret", "ftp://s3cret:x@h"],
)
def test_an_address_with_a_secret_is_refused_with_what_to_use_instead(uri: str) -> None:
    with pytest.raises(SpecError, match=r"Tracking.uri: there is a password in the address") as caught:
        Tracking(uri=uri)
    assert "cret" not in str(caught.value).replace("a secret", "")
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "~/.pgpass"):
        assert name in str(caught.value)


@pytest.mark.parametrize("uri", ["ftp://host", "file.db", "http://[host"])
def test_an_address_of_no_store_is_refused(uri: str) -> None:
    with pytest.raises(SpecError, match="MLflow has no store at"):
        Tracking(uri=uri)
