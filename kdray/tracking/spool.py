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
from typing import Self, get_args

from kdray.errors import SpecError, StorageError
from kdray.safe_text.escaping import printable
from kdray.safe_text.secrets import has_secret
from kdray.storage.files import read_json, write_json
from kdray.storage.paths import SweepPaths
from kdray.storage.safe_json import open_regular_file
from kdray.storage.trust import AddressKind, accept_address, check_address
from kdray.tracking.content import RunContent
from kdray.tracking.settings import Tracking
from kdray.tracking.tracker import Ending, RunNumber

log = logging.getLogger(__name__)

STORE = AddressKind("MLflow store", option="--tracking-uri", variable="MLFLOW_TRACKING_URI")
"""The kind of address that a tracking target remembers."""


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
        """Read the changes in order: which run, and what changed. Cuts off a last line that a kill left incomplete.

        Raises StorageError for a change that would send a folder outside of the sweep's folder.
        """
        with open_regular_file(self._path) as file:
            text = file.read()
        length = text.rfind(b"\n") + 1  # bytes of complete lines
        if length < len(text):
            os.ftruncate(self._file, length)
        changes = []
        for count, line in enumerate(text[:length].splitlines(), start=1):
            try:
                fields = json.loads(line)
                number = fields.pop("run")
                if type(number) not in (int, type(None)):
                    raise TypeError(f"a run {number!r}")
                changes.append((number, RunContent.from_json(fields, self._root, f"{self._path}, line {count}")))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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
    """The settings. As read from disk they have no address: `tracking_at` decides whether `address` may be used."""
    ending: Ending | None = None
    """None while the sweep runs, and after its driver was killed."""
    address: str | None = None
    """The address that the file remembers; None for the database of the storage."""

    @classmethod
    def read(cls, paths: SweepPaths) -> "TrackingTarget | None":
        """Read the target of a sweep; None if the sweep was never tracked. Raises StorageError for a damaged file."""
        if not paths.tracking_target.exists():
            return None
        fields = read_json(paths.tracking_target)
        try:
            settings = dict(fields["tracking"])
            address, ending = settings.pop("uri", None), fields["ending"]
            if not isinstance(address, str | None) or ending not in (None, *get_args(Ending)):
                raise TypeError(f"uri {address!r}, ending {ending!r}")
            return cls(Tracking(**settings), ending, address or None)
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"{paths.tracking_target}: is damaged ({printable(error)}). Restore it, or delete it: kdray then "
                "knows no MLflow store of this sweep until the sweep is run again."
            ) from None

    def tracking_at(self, uri: str | None, paths: SweepPaths) -> Tracking:
        """The settings with the address that the user gives now; None: with the address that the file remembers.

        Raises StorageError for a remembered address that the user has not given on this machine, and SpecError for an
        address with a secret.
        """
        if uri:
            tracking = self.tracking.with_dotted({"uri": uri})
            accept_address(uri)
            return tracking
        if self.address is None:
            return self.tracking
        if has_secret(self.address):
            raise SpecError(
                f"{paths.tracking_target}: the address in it has a secret, or had one that was not written down. Give "
                "the address of the MLflow server, without the secret, with --tracking-uri."
            )
        check_address(self.address, paths.tracking_target, paths.storage, STORE)
        return self.tracking.with_dotted({"uri": self.address})

    def write(self, paths: SweepPaths) -> None:
        """Write the target."""
        settings = {**self.tracking.model_dump(mode="json"), "uri": self.tracking.uri or self.address}
        write_json(paths.tracking_target, {"tracking": settings, "ending": self.ending})


def _open_locked(path: Path) -> int:
    """Open the file, create it if it is missing, and lock it; return the descriptor.

    Raises BlockingIOError when another process has locked it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
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
