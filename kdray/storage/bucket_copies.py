"""Copies the records of a sweep between this machine and a bucket: to resume the sweep, to read it, and while it runs.

A file that is written atomically is sent to the bucket when it is written (`files`). The files that grow line by line
are the journal, the spool of MLflow and the logs. They are copied as they are, every few seconds and at the end. The
last line of such a copy may be incomplete; readers drop it. For a storage in a plain folder this module does nothing.
"""

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from kdray.errors import StorageError
from kdray.storage.mirror import delete, download, fetch, fetch_growing, send, url_of
from kdray.storage.paths import SweepPaths
from kdray.storage.safe_json import read_regular_file

log = logging.getLogger(__name__)

COPY_S = 10.0
"""Seconds between two copies of the growing files: the most that is lost if the head and its disk are lost."""


@contextmanager
def sync_with_bucket(paths: SweepPaths, note: Callable[[str], None]) -> Iterator[None]:
    """Fetch the sweep's records from the bucket, then copy the growing files to the bucket until the block ends.

    The caller must own the sweep (`owner`). `note` receives a message for the user when copying starts to fail. Raises
    StorageError if the bucket cannot be read, or if the last copy of a block that ended well fails.
    """
    if not url_of(paths.root):
        yield
        return
    if fetch(paths.settings).exists():
        fetch_growing(paths.journal)
        # If the target files differ, another session has run since and has sent the calls of the local spool. If they
        # are equal, the local spool may have calls that are not yet in the bucket.
        same_session = _content(paths.tracking_target) == _content(fetch(paths.tracking_target))
        (fetch_growing if same_session else fetch)(paths.spool)
    else:
        # The sweep was deleted from the bucket, so its local files are deleted, too: fetch does that.
        for path in (*({*paths.root.glob("*")} - {paths.logs, paths.owner}), paths.journal):
            fetch(path)
    for path in paths.records:
        fetch(path)
    copier = _Copier(paths, note)
    thread = threading.Thread(target=copier.copy_until_stopped, name="kdray-records", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        copier.stop(thread)
        # The error that ended the block, or Ctrl-C, is what the user must see.
        with suppress(StorageError):
            copier.copy()
        raise
    copier.stop(thread)
    copier.copy()


@contextmanager
def open_for_reading(paths: SweepPaths) -> Iterator[SweepPaths]:
    """Open the sweep's records for reading; a sweep in a bucket is copied to a temporary folder for the block.

    Raises StorageError if the bucket cannot be read.
    """
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
            # The user knows the URL of the sweep, not the temporary folder.
            raise StorageError(str(error).replace(str(copies.root), url)) from None


def _content(file: Path) -> bytes:
    return read_regular_file(file) if file.exists() else b""


@dataclass
class _Copier:
    """Copies the growing files of a sweep to the bucket."""

    paths: SweepPaths
    note: Callable[[str], None]
    stopped: threading.Event = field(default_factory=threading.Event)
    copied: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """File -> its size in bytes and its modification time in ns when it was last copied."""

    def copy_until_stopped(self) -> None:
        """Copy the changed files every `COPY_S` seconds; a failure is logged and the copy is tried again."""
        failing = False
        while not self.stopped.wait(COPY_S):
            try:
                self.copy()
                failing = False
            except StorageError as error:
                log.warning("%s", error)
                if not failing:  # one note for each outage, not one every COPY_S
                    self.note(
                        f"{error} The newest records of the trials stay on this machine's disk until a copy succeeds."
                    )
                failing = True

    def stop(self, thread: threading.Thread) -> None:
        """Let the thread that copies end, and wait for it."""
        self.stopped.set()
        thread.join()

    def copy(self) -> None:
        """Copy the files that have changed since the last copy, and delete copies of files that are gone."""
        current = self._growing_files()
        for file in current:
            if self.copied.get(file) != current[file]:
                with suppress(FileNotFoundError):  # the spool is deleted once all its calls are sent
                    send(file, file)
                self.copied[file] = current[file]
        for file in self.copied.keys() - current.keys():
            delete(file)
            del self.copied[file]

    def _growing_files(self) -> dict[Path, tuple[int, int]]:
        found = {}
        for file in (self.paths.journal, self.paths.spool, *self.paths.logs.glob("*.log")):
            with suppress(FileNotFoundError):
                found[file] = (file.stat().st_size, file.stat().st_mtime_ns)
        return found
