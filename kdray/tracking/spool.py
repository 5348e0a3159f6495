"""The spool: a file in the sweep's folder with one line for each change that MLflow has not received yet.

Every change is passed to the operating system before `append` returns, so no change is lost when the process ends. The
file is emptied when the store has received everything. One process at a time locks it: the driver, or `kdray sync`. The
file next to it, the tracking target, names the store and says how the last session of the sweep ended.
"""

import fcntl
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kdray.errors import SpecError, StorageError
from kdray.storage.files import read_json, write_json
from kdray.storage.paths import SweepPaths
from kdray.tracking.content import RunContent
from kdray.tracking.settings import Tracking, mask_secrets
from kdray.tracking.tracker import Ending, RunNumber

log = logging.getLogger(__name__)


class Spool:
    """The file of unsent changes, locked against other processes until `close`. Not safe for several threads."""

    def __init__(self, paths: SweepPaths) -> None:
        """Open and lock the file. Raises StorageError when another process has it, and when it cannot be written."""
        self._path, self._root = paths.spool, paths.root
        try:
            self._file = _open_locked(self._path)
        except BlockingIOError:
            raise StorageError(
                f"{self._path}: another process is sending this sweep to MLflow (a running sweep, or `kdray sync`). "
                "Wait until it has ended, then run the same command again."
            ) from None
        except OSError as error:
            raise StorageError(
                f"{self._path}: cannot be written ({error.strerror}). Correct the permissions of the folder."
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self) -> list[tuple[RunNumber, RunContent]]:
        """Read the changes in order: which run, and what changed. Cuts off a last line that a kill left incomplete."""
        text = self._path.read_bytes()
        length = text.rfind(b"\n") + 1  # bytes of complete lines
        if length < len(text):
            os.ftruncate(self._file, length)
        changes = []
        for count, line in enumerate(text[:length].splitlines(), start=1):
            try:
                fields = json.loads(line)
                changes.append((fields.pop("run"), RunContent.from_json(fields, self._root)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                log.warning("%s: line %d cannot be read (%s) and is left out.", self._path, count, error)
        return changes

    def append(self, number: RunNumber, change: RunContent) -> None:
        """Write one change. Raises OSError, and writes nothing, when the complete line cannot be written."""
        line = json.dumps({"run": number, **change.to_json(self._root)}, separators=(",", ":")).encode() + b"\n"
        size_before = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(f"only {written} of {len(line)} bytes could be written")
        except OSError:
            os.ftruncate(self._file, size_before)
            raise

    def clear(self) -> None:
        """Empty the file: the store has received everything."""
        os.ftruncate(self._file, 0)

    def close(self) -> None:
        """Unlock and close the file; delete it if it is empty."""
        if os.fstat(self._file).st_size == 0:
            self._path.unlink(missing_ok=True)
        os.close(self._file)


@dataclass(frozen=True)
class TrackingTarget:
    """The store that receives a sweep's runs, and how the last session of the sweep ended."""

    tracking: Tracking
    """As read from disk: without the name and password that the address may have."""
    ending: Ending | None = None
    """None while the sweep runs, and after its driver was killed."""

    @classmethod
    def read(cls, paths: SweepPaths) -> "TrackingTarget | None":
        """Read the target of a sweep; None if the sweep was never tracked."""
        if not paths.tracking_target.exists():
            return None
        fields = read_json(paths.tracking_target)
        return cls(Tracking(**fields["tracking"]), fields["ending"])

    def tracking_at(self, uri: str | None) -> Tracking:
        """The settings with this address; None: with the address of the sweep.

        Raises SpecError where the address of the sweep contained a secret, which is not on disk.
        """
        settings = dict(self.tracking) | ({"uri": uri} if uri else {})
        if "***" in (settings["uri"] or ""):
            raise SpecError(
                f"tracking.uri {settings['uri']}: the secret in it was not written down. Give the whole address with "
                "--tracking-uri."
            )
        return Tracking(**settings)

    def write(self, paths: SweepPaths) -> None:
        """Write the target, without the name and password that the address may have."""
        settings = self.tracking.model_dump(mode="json")
        settings["uri"] = mask_secrets(self.tracking.uri) if self.tracking.uri else None
        write_json(paths.tracking_target, {"tracking": settings, "ending": self.ending})


def _open_locked(path: Path) -> int:
    """Open the file, create it if it is missing, and lock it; return the descriptor.

    Raises BlockingIOError when another process has locked it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise
        except OSError as error:  # a file system without locks
            log.warning("%s: cannot be locked (%s); let no two processes work on this sweep.", path, error)
        if path.exists() and os.fstat(file).st_ino == path.stat().st_ino:
            return file
        # Another process has deleted the empty file between `open` and the lock: this descriptor has no name any more.
        os.close(file)
