"""One driver a sweep: it holds the sweep's folder while it runs, and `owner.json` there says who it is.

On one machine the kernel keeps the lock and drops it with the process, however that ends. Another machine that shares
the folder may see the file and not the lock: there its age tells, for its owner touches it every few seconds. Where the
storage is a bucket, the file is an object there, too, which its owner writes as often. Of two drivers that begin at
once one makes the object; should both come to believe it theirs, one sees the other's name within seconds and ends.
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

from pydantic import BaseModel, ValidationError

from kdray.errors import StorageError
from kdray.storage.bucket import BucketObject
from kdray.storage.mirror import url_of
from kdray.storage.paths import display_path

log = logging.getLogger(__name__)

BEAT_S = 5.0
DEAD_AFTER_S = 60.0
"""Without a sign of life an owner on another machine is taken for dead; a busy file server may hold up some beats."""

SETTLING_S = 2.0
"""How long a lock may outlive its owner: a child that was forked just before lets go of it when it first runs."""

_LOCKS: set[int] = set()
"""The open files that this process holds locks by; a child that is forked must not hold them, too."""


class Owner(BaseModel):
    """A process that runs a sweep."""

    user: str = ""
    host: str = ""
    boot: str = ""
    """One boot of one machine: all processes on it see each other's locks. With a bucket the very file that is locked,
    too: another container has its own."""
    pid: int = 0
    """0 where the file cannot be read."""
    since: float = 0.0

    @classmethod
    def here(cls, boot: str) -> "Owner":
        """This process, from now on."""
        return cls(user=user_name(), host=platform.node(), boot=boot, pid=os.getpid(), since=time.time())

    def __str__(self) -> str:
        if not self.pid:
            return "another process"
        since = datetime.fromtimestamp(self.since).astimezone()
        return f"{self.user}@{self.host} (pid {self.pid}, since {since:%Y-%m-%d %H:%M:%S %Z})"


@contextmanager
def own_sweep(path: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Own the sweep whose `owner.json` this is, within the block; `note` is told of a dead owner's taking over.

    Raises StorageError when another driver owns it, or has taken it over in the meantime.
    """
    try:
        hold = _held(path, note)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}). Make room, or name a folder you may write to."
        ) from None
    try:
        yield
    except KeyboardInterrupt:
        if hold.taken_by is None:
            raise
        raise StorageError(
            f"{display_path(path.parent)}: {hold.taken_by} has taken this sweep over, for nothing was heard of this process "
            f"for {DEAD_AFTER_S:.0f} s. It goes on there; here it is stopped."
        ) from None
    finally:
        hold.release()


@dataclass
class _Hold:
    """The sweep in this process's hands."""

    path: Path
    lock: int
    owner: Owner
    there: BucketObject | None
    """Its twin in the bucket."""
    taken_by: Owner | None = None
    _released: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._text = self.owner.model_dump_json().encode()
        os.pwrite(self.lock, self._text, 0)
        os.ftruncate(self.lock, len(self._text))
        os.fsync(self.lock)
        self._thread = threading.Thread(target=self._beat, name="kdray-owner", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let go. In a child that was forked within the block there is nothing to let go of."""
        if self.owner.pid != os.getpid():
            return
        self._released.set()
        self._thread.join()
        if self.taken_by is None:
            with suppress(OSError):  # a storage that became read-only, or is away
                if self.there:
                    self.there.remove()
                self.path.unlink()
        _closed(self.lock)

    def _beat(self) -> None:
        """Give signs of life, and notice when another machine, which saw none for long, has taken over."""
        while not self._released.wait(BEAT_S):
            try:
                os.utime(self.lock)
                known = _owner((self.there.read() if self.there else self.path.read_bytes()) or b"")
                if self.there and known in (None, self.owner):
                    self.there.write(self._text)
            except OSError as error:
                log.warning("%s: %s", self.path, error)
                continue
            if known is not None and known != self.owner:
                log.error("%s: taken over by %s", self.path, known)
                self.taken_by = known
                _stop_this_process()
                return


def _held(path: Path, note: Callable[[str], None]) -> _Hold:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, locked = _locked(path)
    try:
        there = BucketObject(url) if (url := url_of(path)) else None
        me = Owner.here(_boot() + (f" {os.fstat(lock).st_dev}:{os.fstat(lock).st_ino}" if there else ""))
        before = _owner((there.read() if there else os.pread(lock, 10_000, 0)) or b"")
        age_s = there.age_s() if there and before else _age_s(path.parent, lock)
        if before and age_s < DEAD_AFTER_S and not (locked and before.boot == me.boot):
            raise StorageError(
                f"{display_path(path.parent)}: {before} runs this sweep; it was last heard of {age_s:.0f} s ago. If it is "
                f"dead, wait {DEAD_AFTER_S - age_s:.0f} s and give the command again."
            )
        if there:
            _put(there, me, before)
        hold = _Hold(path, lock, me, there)
    except BaseException:
        _closed(lock)
        raise
    if before:
        note(f"{before} ran this sweep and is dead: going on in its place.")
    return hold


def _put(there: BucketObject, me: Owner, before: Owner | None) -> None:
    """Write our name into the bucket, in the place of a dead owner's. Raises StorageError when somebody was faster."""
    try:
        if before and _owner(there.read() or b"") == before:
            there.remove()
        there.write(me.model_dump_json().encode(), new=True)
    except FileExistsError:
        owner = _owner(there.read() or b"") or Owner()
        raise StorageError(
            f"{there.url}: {owner} has just begun to run this sweep. Wait until it has ended, or stop it."
        ) from None


def _locked(path: Path) -> tuple[int, bool]:
    """The open file, and whether its lock is ours; a file system may have no locks. Raises StorageError if not free."""
    until = time.monotonic() + SETTLING_S
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # closed in programs that this process starts
        _LOCKS.add(lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = _owner(os.pread(lock, 10_000, 0)) or Owner()
            _closed(lock)
            if _gone(owner) and time.monotonic() < until:
                time.sleep(0.05)
                continue
            raise StorageError(
                f"{display_path(path.parent)}: {owner} runs this sweep. Wait until it has ended, or stop it; to run another "
                "sweep beside it, give this one another name (--set name=...)."
            ) from None
        except OSError as error:
            log.warning("%s: no locks here (%s); its age must do", path, error)
            return lock, False
        if os.fstat(lock).st_nlink:
            return lock, True
        _closed(lock)  # between opening and locking its owner let go of it and removed it


def _gone(owner: Owner) -> bool:
    """Whether it was a process of this machine, and is none now."""
    if not owner.pid or owner.boot.partition(" ")[0] != _boot():
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        pass
    return False


def _stop_this_process() -> None:
    """As Ctrl-C does, in the middle of a sleep, too; in the background of a shell script that may be ignored."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM if ignored else signal.SIGINT)


def _closed(lock: int) -> None:
    _LOCKS.discard(lock)
    os.close(lock)


def _let_go_in_child() -> None:
    while _LOCKS:
        os.close(_LOCKS.pop())


os.register_at_fork(after_in_child=_let_go_in_child)


def _owner(text: bytes) -> Owner | None:
    """Whom the file names; None where it is empty, somebody unknown where it cannot be read."""
    try:
        return Owner.model_validate_json(text) if text.strip() else None
    except ValidationError:
        return Owner()


def _age_s(folder: Path, lock: int) -> float:
    """Seconds since the file's owner last touched it, by the clock of the file system: other machines' may be off."""
    with tempfile.TemporaryFile(dir=folder) as new:
        return os.fstat(new.fileno()).st_mtime - os.fstat(lock).st_mtime


def _boot() -> str:
    kernels = Path("/proc/sys/kernel/random/boot_id")
    return kernels.read_text().strip() if kernels.exists() else platform.node()


def user_name() -> str:
    """Who runs this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return str(os.getuid())
