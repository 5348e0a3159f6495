"""What a sweep has told and MLflow has not taken yet, as lines of a file in the sweep's folder.

Every change is handed to the operating system before it is answered, so the end of the process loses none of them. The
file is emptied when all is taken. One process at a time holds it: the driver, or `kdray sync`. Beside it lies where the
lines are to go, and how the sweep's last session ended.
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
from kdray.tracking.tracker import Ending

log = logging.getLogger(__name__)


class Spool:
    """The lines, held against other processes until they are let go; not safe to use from several threads."""

    def __init__(self, paths: SweepPaths) -> None:
        """Open it. Raises StorageError when another process holds it, and when it cannot be written."""
        self._path, self._root = paths.spool, paths.root
        try:
            self._file = _held(self._path)
        except BlockingIOError:
            raise StorageError(
                f"{self._path}: another process is sending this sweep to MLflow (a running sweep, or `kdray sync`). "
                "Wait until it has ended, then run the same command again."
            ) from None
        except OSError as error:
            raise StorageError(
                f"{self._path}: cannot be written ({error.strerror}). Mend the folder's rights."
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self) -> list[tuple[int | None, RunContent]]:
        """The changes in order: trial number, None for the sweep, and what is new. What was torn by a kill is cut."""
        text = self._path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            os.ftruncate(self._file, whole)
        changes = []
        for count, line in enumerate(text[:whole].splitlines(), start=1):
            try:
                fields = json.loads(line)
                changes.append((fields.pop("run"), RunContent.read(fields, self._root)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                log.warning("%s: line %d cannot be read (%s) and is left out.", self._path, count, error)
        return changes

    def append(self, number: int | None, change: RunContent) -> None:
        """Write one change. Raises OSError when it cannot be written whole; then none of it is."""
        line = json.dumps({"run": number, **change.written(self._root)}, separators=(",", ":")).encode() + b"\n"
        before = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(f"only {written} of {len(line)} bytes could be written")
        except OSError:
            os.ftruncate(self._file, before)
            raise

    def clear(self) -> None:
        """All was taken."""
        os.ftruncate(self._file, 0)

    def close(self) -> None:
        """Let it go, and leave no empty file behind."""
        if os.fstat(self._file).st_size == 0:
            self._path.unlink(missing_ok=True)
        os.close(self._file)


@dataclass(frozen=True)
class TrackingTarget:
    """Where a sweep's runs go, as far as it may be written down, and how its last session ended."""

    tracking: Tracking
    ending: Ending | None = None
    """None while it runs, and after it was killed."""

    @classmethod
    def read(cls, paths: SweepPaths) -> "TrackingTarget | None":
        """None for a sweep that was never tracked."""
        if not paths.tracking_target.exists():
            return None
        written = read_json(paths.tracking_target)
        return cls(Tracking(**written["tracking"]), written["ending"])

    def tracking_at(self, uri: str | None) -> Tracking:
        """How the store at this address is reached; None: where the sweep was tracked.

        Raises SpecError where that address had a secret.
        """
        settings = dict(self.tracking) | ({"uri": uri} if uri else {})
        if "***" in (settings["uri"] or ""):
            raise SpecError(
                f"tracking.uri {settings['uri']}: the secret in it was not written down. Give the whole address with "
                "--tracking-uri."
            )
        return Tracking(**settings)

    def write(self, paths: SweepPaths) -> None:
        """Write it down without the name and password that the address may carry."""
        settings = self.tracking.model_dump(mode="json")
        settings["uri"] = mask_secrets(self.tracking.uri) if self.tracking.uri else None
        write_json(paths.tracking_target, {"tracking": settings, "ending": self.ending})


def _held(path: Path) -> int:
    """A descriptor of the file, locked; the file is made where it is not there."""
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
        os.close(file)  # its last holder has just removed it
