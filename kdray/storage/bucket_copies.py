"""A sweep's records where the storage is a bucket: brought here to go on with or to look at, copied there as they grow.

What is written whole is sent by who writes it (`paths`). What grows line by line, the journal, MLflow's spool and the
logs, is copied as it is every few seconds and at the end; a line that is torn then is cut when it is read. For a plain
folder all of this does nothing.
"""

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from kdray.errors import StorageError
from kdray.storage.mirror import download, fetch, fetch_growing, remove, send, url_of
from kdray.storage.paths import SweepPaths

log = logging.getLogger(__name__)

COPY_S = 10.0
"""What grows is in the bucket after so many seconds at most: what is lost with the head's disk."""


@contextmanager
def sync_with_bucket(paths: SweepPaths, note: Callable[[str], None]) -> Iterator[None]:
    """Have the sweep's records here as the bucket has them, and there as they are here until the end of the block.

    Whoever does must own the sweep. Raises StorageError when the bucket cannot be read, or does not get the last copy.
    """
    if not url_of(paths.root):
        yield
        return
    if fetch(paths.settings).exists():
        fetch_growing(paths.journal)
        same = _text(paths.tracking_target) == _text(fetch(paths.tracking_target))
        (fetch_growing if same else fetch)(paths.spool)  # another session has sent what was left here
    else:  # what is here of a sweep that is gone, goes
        for path in (*({*paths.root.glob("*")} - {paths.logs, paths.owner}), paths.journal):
            fetch(path)
    for path in paths.records:
        fetch(path)
    copies = _Copies(paths, note)
    thread = threading.Thread(target=copies.keep_up, name="kdray-records", daemon=True)
    thread.start()
    try:
        yield
    finally:
        copies.over.set()
        thread.join()
        copies.copy()


@contextmanager
def open_for_reading(paths: SweepPaths) -> Iterator[SweepPaths]:
    """The sweep's records for reading: of one in a bucket, copies that go with the block. Raises StorageError."""
    if not (url := url_of(paths.root)):
        yield paths
        return
    with tempfile.TemporaryDirectory(prefix="kdray-") as folder:
        copies = SweepPaths(Path(folder), paths.name)
        copies.journal.parent.mkdir(parents=True)
        for path in (paths.settings, *paths.records, paths.tracking_target, paths.journal):
            download(path, copies.root / path.relative_to(paths.root))
        try:
            yield copies
        except StorageError as error:
            raise StorageError(str(error).replace(str(copies.root), url)) from None


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


@dataclass
class _Copies:
    """What the bucket has of the files that grow."""

    paths: SweepPaths
    note: Callable[[str], None]
    over: threading.Event = field(default_factory=threading.Event)
    known: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """The file -> its size and time of change when it was copied."""

    def keep_up(self) -> None:
        """Copy what has changed, again and again; that the bucket is away is said once, and tried again."""
        said = False
        while not self.over.wait(COPY_S):
            try:
                self.copy()
                said = False
            except StorageError as error:
                log.warning("%s", error)
                if not said:
                    self.note(f"{error} Copies of the trials' records wait for it on this machine's disk.")
                said = True

    def copy(self) -> None:
        """Copy what has changed since the last time."""
        now = self._growing()
        for file in now:
            if self.known.get(file) != now[file]:
                with suppress(FileNotFoundError):  # the spool goes when all is sent
                    send(file, file)
                self.known[file] = now[file]
        for file in self.known.keys() - now.keys():
            remove(file)
            del self.known[file]

    def _growing(self) -> dict[Path, tuple[int, int]]:
        found = {}
        for file in (self.paths.journal, self.paths.spool, *self.paths.logs.glob("*.log")):
            with suppress(FileNotFoundError):
                found[file] = (file.stat().st_size, file.stat().st_mtime_ns)
        return found
