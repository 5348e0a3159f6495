"""One driver per sweep: a second driver is refused and a dead driver is replaced, on this and on other machines."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kdray.cli.exits import log_to
from kdray.errors import StorageError
from kdray.storage import owner
from kdray.storage.bucket import BucketObject
from kdray.storage.mirror import mirror_of
from kdray.storage.owner import Owner, own_sweep
from kdray.storage.paths import SweepPaths
from tests.storage.bucket_server import on_node

DRIVER_PROGRAM = """
import os, subprocess, sys, time
from pathlib import Path
from kdray.storage.owner import _OPEN_LOCKS, own_sweep

with own_sweep(Path(sys.argv[1]), print):
    started = subprocess.Popen(["sleep", "60"], close_fds=False)
    if len(sys.argv) > 2:  # keeps the lock, as a child does that was forked and has not run Python code yet
        subprocess.Popen(["sleep", sys.argv[2]], pass_fds=_OPEN_LOCKS)
    forked = os.fork()
    if not forked:
        time.sleep(60)
        os._exit(0)
    print(started.pid, forked, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sweep" / "owner.json"


@contextmanager
def other_driver(file: Path, *lock_s: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Start another driver that owns the sweep; yield it and its children, a program and a fork of the driver.

    With `lock_s`, another child keeps the lock for this time in seconds, even if the driver dies.
    """
    command = [sys.executable, "-c", DRIVER_PROGRAM, str(file), *lock_s]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    children: list[int] = []
    try:
        assert driver.stdout
        children = [int(pid) for pid in driver.stdout.readline().split()]
        assert len(children) == 2
        yield driver, children
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        driver.kill()
        driver.communicate(timeout=20)


def write_owner(file: Path, boot: str, seconds_ago: float) -> Owner:
    """Write the file of an owner whose last heartbeat was `seconds_ago`."""
    before = Owner(user="anna", host="node7", boot=boot, pid=4711, since=time.time() - seconds_ago)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(before.model_dump_json())
    os.utime(file, (time.time() - seconds_ago,) * 2)
    return before


def own_and_release(file: Path) -> list[str]:
    """Own the sweep and release it; return the notes for the user."""
    notes: list[str] = []
    with own_sweep(file, notes.append):
        assert Owner.model_validate_json(file.read_bytes()).pid == os.getpid()
    assert not file.exists()
    return notes


def test_owner_leaves_no_files(file: Path) -> None:
    assert own_and_release(file) == own_and_release(file) == []
    assert not list(file.parent.iterdir())


def test_second_driver_is_refused_with_the_name_of_the_owner(file: Path) -> None:
    with other_driver(file) as (driver, _):
        with pytest.raises(StorageError) as caught, own_sweep(file, print):
            pass
        assert file.exists()
        owner_name = (
            rf"sweep: \S+@{re.escape(os.uname().nodename)} \(pid {driver.pid}, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
        )
        assert re.search(owner_name, str(caught.value)), str(caught.value)
        assert "Wait until it has ended, or stop it" in str(caught.value)
        assert caught.value.exit_code == 2


def test_killed_driver_with_living_children_is_replaced_at_once(file: Path) -> None:
    with other_driver(file) as (driver, children):
        driver.kill()
        driver.wait(timeout=20)
        for pid in children:
            os.kill(pid, 0)  # raises if the child is dead
        (note,) = own_and_release(file)
    assert f"pid {driver.pid}" in note
    assert "is dead; this process continues the sweep" in note


def test_lock_of_a_dead_driver_in_a_child_is_awaited(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "LOCK_RELEASE_S", 20.0)
    with other_driver(file, "2") as (driver, _):
        with pytest.raises(StorageError, match="runs this sweep"), own_sweep(file, print):
            pass
        driver.kill()
        driver.wait(timeout=20)
        (note,) = own_and_release(file)
    assert "is dead; this process continues the sweep" in note


def test_owner_on_another_machine_is_alive_while_its_file_is_fresh(file: Path) -> None:
    write_owner(file, "another boot", seconds_ago=20)
    with pytest.raises(StorageError) as caught, own_sweep(file, print):
        pass
    message = str(caught.value)
    assert "anna@node7 (pid 4711" in message
    assert (age := re.search(r"its last heartbeat was (\d+) s ago", message))
    assert (wait := re.search(r"If that process is dead, wait (\d+) s and run the command again", message))
    assert 19 <= int(age[1]) <= 30
    assert int(age[1]) + int(wait[1]) == pytest.approx(owner.DEAD_AFTER_S, abs=1)
    assert "4711" in file.read_text()


def test_owner_on_another_machine_is_dead_when_its_file_is_old(file: Path) -> None:
    write_owner(file, "another boot", seconds_ago=owner.DEAD_AFTER_S + 5)
    (note,) = own_and_release(file)
    assert "anna@node7 (pid 4711" in note
    assert "dead" in note


def test_file_without_a_readable_owner_counts_while_it_is_fresh(file: Path) -> None:
    file.parent.mkdir()
    file.write_text('{"user": "an')
    with (
        pytest.raises(StorageError, match="another process runs this sweep; its last heartbeat was"),
        own_sweep(file, print),
    ):
        pass
    os.utime(file, (time.time() - owner.DEAD_AFTER_S - 5,) * 2)
    assert own_and_release(file) == ["another process ran this sweep and is dead; this process continues the sweep."]
    file.write_text("")  # its owner was killed before it wrote its name
    assert own_and_release(file) == []


def test_without_file_locks_the_age_of_the_file_decides(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with own_sweep(file, print):
        with (
            pytest.raises(StorageError, match=rf"pid {os.getpid()}, .* its last heartbeat was 0 s ago"),
            own_sweep(file, print),
        ):
            pass
        assert file.exists()
    assert not file.exists()


def test_owner_sends_heartbeats(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "HEARTBEAT_S", 0.05)
    with own_sweep(file, print):
        os.utime(file, (0, 0))
        until = time.monotonic() + 20
        while file.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert time.time() - file.stat().st_mtime < 20


@pytest.fixture
def default_sigint() -> Iterator[None]:
    """Python's handler of SIGINT, as at a terminal.

    In the background of a shell SIGINT is ignored; the SIGTERM that is sent then would end the tests.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_sigint")
def test_replaced_owner_stops(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was suspended or cut off from the storage finds another owner in the file."""
    monkeypatch.setattr(owner, "HEARTBEAT_S", 0.05)
    started_at = time.monotonic()

    def run_until_stopped() -> None:
        with own_sweep(file, print):
            write_owner(file, "another boot", seconds_ago=0)
            time.sleep(60)

    with pytest.raises(StorageError, match=r"anna@node7 \(pid 4711, .* has taken over this sweep"):
        run_until_stopped()
    assert time.monotonic() - started_at < 30
    assert "4711" in file.read_text()


def test_ctrl_c_stays_a_keyboard_interrupt(file: Path) -> None:
    with pytest.raises(KeyboardInterrupt), own_sweep(file, print):
        raise KeyboardInterrupt
    assert not file.exists()


def test_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep").write_text("a file")
    with (
        pytest.raises(StorageError, match=r"owner\.json: cannot be written"),
        own_sweep(tmp_path / "sweep" / "owner.json", print),
    ):
        pass


# ---- in a bucket: the other machine sees the object only ----


@pytest.fixture
def files(bucket: str, tmp_path: Path) -> tuple[Path, Path]:
    """The path of one sweep's owner.json on this machine and on another machine."""
    local = mirror_of(bucket) / "sweep" / "owner.json"
    return local, on_node(tmp_path / "other", local)


def test_sweep_in_a_bucket_has_one_owner_across_machines(files: tuple[Path, Path], bucket: str) -> None:
    local, other = files
    with own_sweep(local, print):
        for file in (local, other):
            with (
                pytest.raises(StorageError, match=rf"{bucket}/sweep: \S+ \(pid {os.getpid()}, .*runs this"),
                own_sweep(file, print),
            ):
                pass
    assert own_and_release(other) == own_and_release(local) == []


def test_dead_owner_in_a_bucket_is_replaced(
    files: tuple[Path, Path], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its own machine at once, because the lock is free; on another machine once its object is old."""
    local, other = files
    with other_driver(local) as (driver, _):
        driver.kill()
        driver.wait(timeout=20)
        with (
            pytest.raises(StorageError, match=r"its last heartbeat was \d+ s ago. If that process is dead, wait \d+ s"),
            own_sweep(other, print),
        ):
            pass
        (note,) = own_and_release(local)
        assert f"pid {driver.pid}" in note
    with other_driver(local) as (driver, _):
        driver.kill()
        driver.wait(timeout=20)
        monkeypatch.setattr(owner, "DEAD_AFTER_S", 2.0)
        time.sleep(3.5)
        (note,) = own_and_release(other)
        assert "is dead; this process continues the sweep" in note
    assert BucketObject(f"{bucket}/sweep/owner.json").read() is None


def test_of_two_drivers_that_start_at_once_one_is_refused(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    local, other = files
    with own_sweep(local, print):
        monkeypatch.setattr(BucketObject, "read", lambda _: None)  # as if it had read before the first one wrote
        with pytest.raises(StorageError, match="has just started to run this sweep"), own_sweep(other, print):
            pass


@pytest.mark.usefixtures("default_sigint")
def test_replaced_owner_in_a_bucket_stops(
    files: tuple[Path, Path], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "HEARTBEAT_S", 0.05)

    def run_until_stopped() -> None:
        with own_sweep(files[0], print):
            now = Owner(user="anna", host="node7", boot="another boot", pid=4711, since=time.time())
            while True:  # a heartbeat that is under way may write this process's name once more
                BucketObject(f"{bucket}/sweep/owner.json").write(now.model_dump_json().encode())
                time.sleep(0.2)

    started_at = time.monotonic()
    with pytest.raises(StorageError, match=r"anna@node7 \(pid 4711, .* has taken over this sweep"):
        run_until_stopped()
    assert time.monotonic() - started_at < 30
    assert b"4711" in (BucketObject(f"{bucket}/sweep/owner.json").read() or b"")


# ---- what somebody else wrote ----


@pytest.mark.parametrize(
    "place", [".", "logs", "owner.json", "logs/kdray.log", "ledger/journal.log", "trials/0001/student"]
)
def test_a_link_out_of_the_storage_is_refused_before_anything_is_written(tmp_path: Path, place: str) -> None:
    target, sweep = tmp_path / "precious", tmp_path / "storage" / "tiny"
    is_folder = place in (".", "logs", "trials/0001/student")
    target.mkdir() if is_folder else target.write_text("precious")
    link = sweep / place
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    with (
        pytest.raises(StorageError, match=r"is a link to .*precious, outside of .*storage\.") as caught,
        own_sweep(sweep / "owner.json", lambda note: None),
    ):
        pass
    assert caught.value.exit_code == 2
    assert list(target.iterdir()) == [] if is_folder else target.read_text() == "precious"


def test_the_cache_may_be_a_link_and_nothing_in_it_leads_elsewhere(tmp_path: Path) -> None:
    sweep, disk = tmp_path / "storage" / "tiny", tmp_path / "disk"
    (disk / "transfers").mkdir(parents=True)
    sweep.mkdir(parents=True)
    (tmp_path / "storage" / "cache").symlink_to(disk)
    with own_sweep(sweep / "owner.json", lambda note: None):
        pass
    (tmp_path / "precious").mkdir()
    (disk / "transfers" / "0a1b").symlink_to(tmp_path / "precious")
    with (
        pytest.raises(StorageError, match=r"transfers/0a1b: is a link to .*precious, outside of .*disk\."),
        own_sweep(sweep / "owner.json", lambda note: None),
    ):
        pass


def test_the_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path / "storage", "tiny")
    paths.logs.mkdir(parents=True)
    (tmp_path / "profile").write_text("precious")
    (paths.logs / "kdray.log").symlink_to(tmp_path / "profile")
    with pytest.raises(StorageError, match="is a link to"):
        log_to(paths)
    assert (tmp_path / "profile").read_text() == "precious"


@pytest.mark.parametrize(
    "fields",
    [
        {"pid": 1 << 40},
        {"pid": -1},
        {"pid": "x"},
        {"since": 1e300},
        {"since": float("nan")},
        {"since": -1},
        {"user": ["x"]},
        {"user": "\x1b[2Jben\nkdray: all is well"},
        {"host": "h" * 5000},
    ],
    ids=lambda fields: repr(fields)[:30],
)
def test_an_odd_owner_is_named_in_one_harmless_sentence(tmp_path: Path, fields: dict[str, Any]) -> None:
    """It may be alive on another machine, so its sweep is not taken."""
    owner = {"user": "ben", "host": "other", "boot": "other", "pid": 7, "since": 1.0} | fields
    (tmp_path / "owner.json").write_text(json.dumps(owner))
    with (
        pytest.raises(StorageError, match="runs this sweep") as caught,
        own_sweep(tmp_path / "owner.json", lambda note: None),
    ):
        pass
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("text", ["[" * 9_000, "x" * 1_000_000, "{", "\xff"], ids=["deep", "long", "torn", "other"])
def test_an_owner_file_that_is_none_is_an_unknown_owner(tmp_path: Path, text: str) -> None:
    (tmp_path / "owner.json").write_text(text)
    with (
        pytest.raises(StorageError, match="another process runs this sweep"),
        own_sweep(tmp_path / "owner.json", lambda note: None),
    ):
        pass
