"""One driver a sweep: a second one is refused, a dead one is replaced, on this machine and on others."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kdray.errors import StorageError
from kdray.storage import owner
from kdray.storage.bucket import BucketObject
from kdray.storage.mirror import mirror_of
from kdray.storage.owner import Owner, own_sweep
from tests.storage.bucket_server import on_node

HOLDING = """
import os, subprocess, sys, time
from pathlib import Path
from kdray.storage.owner import _LOCKS, own_sweep

with own_sweep(Path(sys.argv[1]), print):
    started = subprocess.Popen(["sleep", "60"], close_fds=False)
    if len(sys.argv) > 2:  # as one that was forked, and has not run yet
        subprocess.Popen(["sleep", sys.argv[2]], pass_fds=_LOCKS)
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
def holding(file: Path, *lingers: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Another driver that owns the sweep, and its children: a program that it started, and a fork of itself.

    Its lock lingers for so many seconds after its death.
    """
    driver = subprocess.Popen([sys.executable, "-c", HOLDING, str(file), *lingers], stdout=subprocess.PIPE, text=True)
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


def left_by(file: Path, boot: str, seconds_ago: float) -> Owner:
    """The file of an owner who last touched it then."""
    before = Owner(user="anna", host="node7", boot=boot, pid=4711, since=time.time() - seconds_ago)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(before.model_dump_json())
    os.utime(file, (time.time() - seconds_ago,) * 2)
    return before


def taken(file: Path) -> list[str]:
    """What is said when this process takes the sweep and lets it go."""
    notes: list[str] = []
    with own_sweep(file, notes.append):
        assert Owner.model_validate_json(file.read_bytes()).pid == os.getpid()
    assert not file.exists()
    return notes


def test_an_owner_leaves_nothing(file: Path) -> None:
    assert taken(file) == taken(file) == []
    assert not list(file.parent.iterdir())


def test_a_second_driver_is_refused_and_told_who_is_there(file: Path) -> None:
    with holding(file) as (driver, _):
        with pytest.raises(StorageError) as caught, own_sweep(file, print):
            pass
        assert file.exists()
        who = rf"sweep: \S+@{re.escape(os.uname().nodename)} \(pid {driver.pid}, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
        assert re.search(who, str(caught.value)), str(caught.value)
        assert "Wait until it has ended, or stop it" in str(caught.value)
        assert caught.value.exit_code == 2


def test_a_killed_driver_whose_children_live_is_replaced_at_once(file: Path) -> None:
    with holding(file) as (driver, children):
        driver.kill()
        driver.wait(timeout=20)
        for pid in children:
            os.kill(pid, 0)  # alive
        (note,) = taken(file)
    assert f"pid {driver.pid}" in note
    assert "is dead: going on in its place" in note


def test_a_lock_that_lingers_with_a_child_is_waited_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "SETTLING_S", 20.0)
    with holding(file, "2") as (driver, _):
        with pytest.raises(StorageError, match="runs this sweep"), own_sweep(file, print):
            pass
        driver.kill()
        driver.wait(timeout=20)
        (note,) = taken(file)
    assert "is dead: going on in its place" in note


def test_another_machines_owner_is_believed_while_its_file_is_fresh(file: Path) -> None:
    left_by(file, "another boot", seconds_ago=20)
    with pytest.raises(StorageError) as caught, own_sweep(file, print):
        pass
    said = str(caught.value)
    assert "anna@node7 (pid 4711" in said
    assert (heard := re.search(r"last heard of (\d+) s ago", said))
    assert (wait := re.search(r"If it is dead, wait (\d+) s and give the command again", said))
    assert 19 <= int(heard[1]) <= 30
    assert int(heard[1]) + int(wait[1]) == pytest.approx(owner.DEAD_AFTER_S, abs=1)
    assert "4711" in file.read_text()


def test_another_machines_owner_is_dead_when_its_file_is_old(file: Path) -> None:
    left_by(file, "another boot", seconds_ago=owner.DEAD_AFTER_S + 5)
    (note,) = taken(file)
    assert "anna@node7 (pid 4711" in note
    assert "dead" in note


def test_a_file_that_names_nobody_is_respected_while_it_is_fresh(file: Path) -> None:
    file.parent.mkdir()
    file.write_text('{"user": "an')
    with (
        pytest.raises(StorageError, match="another process runs this sweep; it was last heard of"),
        own_sweep(file, print),
    ):
        pass
    os.utime(file, (time.time() - owner.DEAD_AFTER_S - 5,) * 2)
    assert taken(file) == ["another process ran this sweep and is dead: going on in its place."]
    file.write_text("")  # its owner was killed before it wrote its name
    assert taken(file) == []


def test_where_there_are_no_locks_the_age_must_do(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with own_sweep(file, print):
        with pytest.raises(StorageError, match=rf"pid {os.getpid()}, .* last heard of 0 s ago"), own_sweep(file, print):
            pass
        assert file.exists()
    assert not file.exists()


def test_an_owner_gives_signs_of_life(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "BEAT_S", 0.05)
    with own_sweep(file, print):
        os.utime(file, (0, 0))
        until = time.monotonic() + 20
        while file.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert time.time() - file.stat().st_mtime < 20


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """As at a terminal: in the background of a shell Python leaves SIGINT ignored, and SIGTERM would end the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_who_was_silent_and_is_replaced_stops(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slept, or was cut off from the storage, wakes up and finds another one at work."""
    monkeypatch.setattr(owner, "BEAT_S", 0.05)
    began = time.monotonic()

    def silent() -> None:
        with own_sweep(file, print):
            left_by(file, "another boot", seconds_ago=0)
            time.sleep(60)

    with pytest.raises(StorageError, match=r"anna@node7 \(pid 4711, .* has taken this sweep over"):
        silent()
    assert time.monotonic() - began < 30
    assert "4711" in file.read_text()


def test_an_interrupt_stays_an_interrupt(file: Path) -> None:
    with pytest.raises(KeyboardInterrupt), own_sweep(file, print):
        raise KeyboardInterrupt
    assert not file.exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep").write_text("a file")
    with (
        pytest.raises(StorageError, match=r"owner\.json: cannot be written"),
        own_sweep(tmp_path / "sweep" / "owner.json", print),
    ):
        pass


# ---- in a bucket: the other machine sees the object alone ----


@pytest.fixture
def objects(bucket: str, tmp_path: Path) -> tuple[Path, Path]:
    """One sweep's owner.json as two machines see it."""
    here = mirror_of(bucket) / "sweep" / "owner.json"
    return here, on_node(tmp_path / "other", here)


def test_a_bucket_has_one_owner_whatever_the_machine(objects: tuple[Path, Path], bucket: str) -> None:
    here, there = objects
    with own_sweep(here, print):
        for other in (here, there):
            with (
                pytest.raises(StorageError, match=rf"{bucket}/sweep: \S+ \(pid {os.getpid()}, .*runs this"),
                own_sweep(other, print),
            ):
                pass
    assert taken(there) == taken(here) == []


def test_a_dead_owner_in_a_bucket_is_replaced(
    objects: tuple[Path, Path], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its own machine at once, for the lock is free; elsewhere when its object is old."""
    here, there = objects
    with holding(here) as (driver, _):
        driver.kill()
        driver.wait(timeout=20)
        with (
            pytest.raises(StorageError, match=r"last heard of \d+ s ago. If it is dead, wait \d+ s"),
            own_sweep(there, print),
        ):
            pass
        (note,) = taken(here)
        assert f"pid {driver.pid}" in note
    with holding(here) as (driver, _):
        driver.kill()
        driver.wait(timeout=20)
        monkeypatch.setattr(owner, "DEAD_AFTER_S", 2.0)
        time.sleep(3.5)
        (note,) = taken(there)
        assert "is dead: going on in its place" in note
    assert BucketObject(f"{bucket}/sweep/owner.json").read() is None


def test_of_two_that_begin_at_once_one_is_refused(objects: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = objects
    with own_sweep(here, print):
        monkeypatch.setattr(BucketObject, "read", lambda note: None)  # the other has looked before this one wrote
        with pytest.raises(StorageError, match="has just begun to run this sweep"), own_sweep(there, print):
            pass


@pytest.mark.usefixtures("hears_ctrl_c")
def test_who_was_replaced_in_a_bucket_stops(
    objects: tuple[Path, Path], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "BEAT_S", 0.05)

    def silent() -> None:
        with own_sweep(objects[0], print):
            now = Owner(user="anna", host="node7", boot="another boot", pid=4711, since=time.time())
            while True:  # a beat that was under way may write its own name once more
                BucketObject(f"{bucket}/sweep/owner.json").write(now.model_dump_json().encode())
                time.sleep(0.2)

    began = time.monotonic()
    with pytest.raises(StorageError, match=r"anna@node7 \(pid 4711, .* has taken this sweep over"):
        silent()
    assert time.monotonic() - began < 30
    assert b"4711" in (BucketObject(f"{bucket}/sweep/owner.json").read() or b"")
