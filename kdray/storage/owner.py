"""Lets one driver at a time run a sweep. `owner.json` in the sweep's folder names the process that owns the sweep.

- **On one machine** the owner holds a lock (flock) on the file. The kernel releases it when the process ends, however
  it ends.
- **On another machine** that shares the folder the lock may be invisible. The age of the file decides there: the owner
  touches the file every `HEARTBEAT_S` seconds, and counts as dead after `DEAD_AFTER_S` seconds without a heartbeat.
- **In a bucket** the file is an object, too, which the owner writes at the same rate. If two drivers start at once, a
  conditional write lets one of them create the object. If two drivers both replace a dead owner, each reads the object
  at its next heartbeat, and the one that finds the other's name stops.
"""

import fcntl
import getpass
import logging
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from kdray.errors import StorageError
from kdray.safe_text.escaping import printable
from kdray.storage.bucket import BucketObject
from kdray.storage.mirror import url_of
from kdray.storage.names import check_links
from kdray.storage.paths import StoragePaths, display_path

log = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
DEAD_AFTER_S = 60.0
"""An owner on another machine counts as dead after this time without a heartbeat.

It is twelve heartbeats, because a busy file server may delay some of them.
"""

LOCK_RELEASE_S = 2.0
"""How long to wait for the lock of a dead owner: a child that was just forked keeps it until its Python code runs."""

LAST_TIME_S = 253_402_214_400.0
"""The end of the year 9999, after which Python has no dates, in seconds since the epoch."""
MAX_OWNER_BYTES = 10_000

_OPEN_LOCKS: set[int] = set()
"""The descriptors of this process's locks. A forked child closes its copies, or it would keep the locks."""


Printable: TypeAlias = Annotated[str, AfterValidator(lambda text: printable(text, 100))]


class Owner(BaseModel):
    """A process that runs a sweep: the content of `owner.json`."""

    # Another program may have written the file: its texts are printed, and its numbers are given to the system.
    user: Printable = ""
    host: Printable = ""
    boot: str = ""
    """The boot ID of the machine: processes of the same boot see each other's locks.

    With a bucket it also has the device and inode of the locked file, because containers on one machine have different
    files.
    """
    pid: int = Field(0, ge=0, lt=1 << 31)
    """0 if the file cannot be parsed."""
    since: float = Field(0.0, ge=0.0, lt=LAST_TIME_S)
    """When the process became the owner, in seconds since the epoch."""

    @classmethod
    def this_process(cls, boot: str) -> "Owner":
        """This process as the owner from now on."""
        return cls(user=user_name(), host=platform.node(), boot=boot, pid=os.getpid(), since=time.time())

    def __str__(self) -> str:
        if not self.pid:
            return "another process"
        since = datetime.fromtimestamp(self.since).astimezone()
        return f"{self.user}@{self.host} (pid {self.pid}, since {since:%Y-%m-%d %H:%M:%S %Z})"


@contextmanager
def own_sweep(path: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Own a sweep, whose `owner.json` is `path`, for the block. `note` receives a message if a dead owner is replaced.

    Raises StorageError if another driver owns the sweep, or takes it over during the block, and if a link in the
    sweep's folder leads out of the storage, or a link in the storage's cache out of the cache.
    """
    try:
        # Here, because this file is the first that a command writes into the folder of a sweep.
        check_links(path.parent, path.parent.parent)
        # The cache itself may be a link, to a disk that has room for it.
        cache = StoragePaths(path.parent.parent).cache.resolve()
        check_links(cache, cache)
        ownership = _take_ownership(path, note)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}). Free some space there, or name a folder you may write to."
        ) from None
    try:
        yield
    except KeyboardInterrupt:
        if ownership.taken_by is None:
            raise
        raise StorageError(
            f"{display_path(path.parent)}: {ownership.taken_by} has taken over this sweep, because this process sent "
            f"no heartbeat for {DEAD_AFTER_S:.0f} s. The sweep continues there and is stopped here."
        ) from None
    finally:
        ownership.release()


@dataclass
class _Ownership:
    """The lock and the heartbeat with which this process owns a sweep."""

    path: Path
    lock: int
    """The descriptor of the open file."""
    owner: Owner
    remote: BucketObject | None
    """The same file in the bucket; None for a storage in a plain folder."""
    taken_by: Owner | None = None
    """The owner that has replaced this process."""
    _released: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._text = self.owner.model_dump_json().encode()
        # Written in place, not with replace_file: the lock belongs to the inode.
        os.pwrite(self.lock, self._text, 0)
        os.ftruncate(self.lock, len(self._text))
        os.fsync(self.lock)
        self._thread = threading.Thread(target=self._send_heartbeats, name="kdray-owner", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Stop the heartbeat, delete the file and release the lock. Does nothing in a forked child."""
        if self.owner.pid != os.getpid():
            return
        self._released.set()
        self._thread.join()
        if self.taken_by is None:
            with suppress(OSError):  # the storage may be read-only or unreachable by now
                if self.remote:
                    self.remote.remove()
                self.path.unlink()
        _close_lock(self.lock)

    def _send_heartbeats(self) -> None:
        """Touch the file every `HEARTBEAT_S` seconds; stop this process if another owner has replaced it.

        That happens to a machine that was suspended or cut off from the storage for longer than `DEAD_AFTER_S`.
        """
        while not self._released.wait(HEARTBEAT_S):
            try:
                os.utime(self.lock)
                text = self.remote.read() if self.remote else _read_start(self.path)
                current = _parse_owner(text or b"")
                if self.remote and current in (None, self.owner):
                    self.remote.write(self._text)
            except OSError as error:
                log.warning("%s: %s", self.path, error)
                continue
            if current is not None and current != self.owner:
                log.error("%s: taken over by %s", self.path, current)
                self.taken_by = current
                _interrupt_this_process()
                return


def _take_ownership(path: Path, note: Callable[[str], None]) -> _Ownership:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, locked = _open_and_lock(path)
    try:
        remote = BucketObject(url) if (url := url_of(path)) else None
        boot = _boot_id()
        if remote:
            boot += f" {os.fstat(lock).st_dev}:{os.fstat(lock).st_ino}"
        me = Owner.this_process(boot)
        before = _parse_owner((remote.read() if remote else os.pread(lock, MAX_OWNER_BYTES, 0)) or b"")
        age_s = remote.age_s() if remote and before else _age_s(path.parent, lock)
        # An owner of this boot would still hold the lock if it were alive, so its age does not matter.
        dead = age_s >= DEAD_AFTER_S or (locked and before is not None and before.boot == me.boot)
        if before and not dead:
            raise StorageError(
                f"{display_path(path.parent)}: {before} runs this sweep; its last heartbeat was {age_s:.0f} s ago. If "
                f"that process is dead, wait {DEAD_AFTER_S - age_s:.0f} s and run the command again."
            )
        if remote:
            _write_remote_owner(remote, me, before)
        ownership = _Ownership(path=path, lock=lock, owner=me, remote=remote)
    except BaseException:
        _close_lock(lock)
        raise
    if before:
        note(f"{before} ran this sweep and is dead; this process continues the sweep.")
    return ownership


def _write_remote_owner(remote: BucketObject, me: Owner, before: Owner | None) -> None:
    """Write `me` into the bucket in place of the dead owner `before`. Raises StorageError if another one is faster."""
    try:
        if before and _parse_owner(remote.read() or b"") == before:
            remote.remove()
        remote.write(me.model_dump_json().encode(), new=True)
    except FileExistsError:
        owner = _parse_owner(remote.read() or b"") or Owner()
        raise StorageError(
            f"{remote.url}: {owner} has just started to run this sweep. Wait until it has ended, or stop it."
        ) from None


def _open_and_lock(path: Path) -> tuple[int, bool]:
    """Open and lock the file: the descriptor, and False if the file system has no locks.

    Raises StorageError if another process holds the lock.
    """
    until = time.monotonic() + LOCK_RELEASE_S
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # not inherited by programs that this process starts
        _OPEN_LOCKS.add(lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = _parse_owner(os.pread(lock, MAX_OWNER_BYTES, 0)) or Owner()
            _close_lock(lock)
            if _is_dead_on_this_machine(owner) and time.monotonic() < until:
                time.sleep(0.05)
                continue
            raise StorageError(
                f"{display_path(path.parent)}: {owner} runs this sweep. Wait until it has ended, or stop it; to run "
                "another sweep beside it, give this one another name (--set name=...)."
            ) from None
        except OSError as error:
            log.warning("%s: no locks on this file system (%s); the age of the file is used instead", path, error)
            return lock, False
        if os.fstat(lock).st_nlink:
            return lock, True
        _close_lock(lock)  # its owner deleted the file after it was opened here: the lock is on no file


def _is_dead_on_this_machine(owner: Owner) -> bool:
    """Whether the owner was a process of this machine and does not exist any more."""
    if not owner.pid or owner.boot.partition(" ")[0] != _boot_id():
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # the process exists and belongs to another user
        pass
    return False


def _interrupt_this_process() -> None:
    """Stop the main thread as Ctrl-C does: with a signal, which also interrupts a sleep.

    In the background of a shell script SIGINT may be ignored; then the signal is SIGTERM.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM if ignored else signal.SIGINT)


def _close_lock(lock: int) -> None:
    _OPEN_LOCKS.discard(lock)
    os.close(lock)


def _close_locks_in_child() -> None:
    while _OPEN_LOCKS:
        os.close(_OPEN_LOCKS.pop())


os.register_at_fork(after_in_child=_close_locks_in_child)


def _parse_owner(text: bytes) -> Owner | None:
    """The owner in the file; None if the file is empty, an unknown owner (pid 0) if it cannot be parsed."""
    try:
        return Owner.model_validate_json(text) if text.strip() else None
    except ValidationError:
        return Owner()


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_OWNER_BYTES)


def _age_s(folder: Path, lock: int) -> float:
    """Seconds since the file was last touched, by the clock of the file system, because machines' clocks may differ."""
    with tempfile.TemporaryFile(dir=folder) as new:
        return os.fstat(new.fileno()).st_mtime - os.fstat(lock).st_mtime


def _boot_id() -> str:
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text().strip() if file.exists() else platform.node()


def user_name() -> str:
    """The name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run with a user ID that has no name
        return str(os.getuid())
