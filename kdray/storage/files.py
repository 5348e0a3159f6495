"""Writes files and folders atomically, reads and writes JSON, makes scratch folders, and computes fingerprints.

A writer fills a temporary file or folder and renames it when it is complete: a reader finds the complete content or
nothing. In a storage that is a bucket, the content is sent to the bucket before the local rename. `paths` defines the
paths.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from kdray.storage.mirror import send, url_of
from kdray.storage.safe_json import parse_json, read_regular_file

SCRATCH = "kdray-scratch-"
"""The prefix of the names of scratch folders."""

ABANDONED_AFTER_S = 3600.0
"""Seconds after its last change from which on a temporary file is one of a process that was killed."""

SCRATCH_LOCKED_WITHIN_S = 60.0
"""Seconds after which a process has locked the scratch folder that it made, or is dead."""


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of all parts as JSON; equal values give equal fingerprints."""
    text = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_fingerprint(*files: Path) -> str:
    """16 hexadecimal digits of a SHA-256 of the contents of these files, in this order; names do not count."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` when the block ends without an error; otherwise delete it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path)
    # Not tempfile.mkstemp: its files are readable by their owner only, whatever the umask allows a team to read.
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        # Without fsync, a power failure after the rename could leave an empty file under the final name.
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        send(temporary, path)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def delete_abandoned(folder: Path) -> None:
    """Delete the temporary files in this folder whose writers were killed. One that is being written stays."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _TEMPORARY_NAME.fullmatch(path.name):
            with suppress(FileNotFoundError):  # another process has deleted or renamed it
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime > ABANDONED_AFTER_S:
                    path.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises StorageError if the file cannot be read, is too long, or is not valid JSON."""
    return parse_json(read_regular_file(path), path)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` when the block ends without an error; otherwise delete it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path)
    temporary.mkdir()  # not tempfile.mkdtemp, for the same reason as in `replace_file`
    try:
        yield temporary
        send(temporary, path)
        if path.is_symlink():
            path.unlink()  # the link, not the folder that it leads to
        elif path.exists():
            shutil.rmtree(path)  # os.replace accepts no folder with files in it as its target
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def upload_folder(path: Path) -> Iterator[Path]:
    """Replace a folder as `replace_folder` does; if the storage is a bucket, keep no copy on this node."""
    with replace_folder(path) as temporary:
        yield temporary
    if url_of(path):
        shutil.rmtree(path)


@contextmanager
def scratch_folder(root: Path | None = None) -> Iterator[Path]:
    """Yield a folder on this machine that is deleted after the block; also delete those that killed processes left.

    Only this user can enter it. `root`: the folder that it is made in; None: the system's for temporary files.
    """
    root = root or Path(tempfile.gettempdir())
    for old in root.glob(f"{SCRATCH}*"):
        with suppress(OSError):  # also raised if a living process has locked the folder
            # A new folder may not be locked yet, although its process is alive.
            if time.time() - old.stat().st_mtime > SCRATCH_LOCKED_WITHIN_S:
                with _lock_folder(old):
                    shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=root, prefix=SCRATCH))
    with _lock_folder(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


_TEMPORARY_NAME = re.compile(r"\..+-[0-9a-f]{12}")


def _temporary_path(path: Path) -> Path:
    """A new path beside `path`, on the same file system, with a name that nobody else has."""
    return path.with_name(f".{path.name}-{uuid4().hex[:12]}")


@contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder for the block; the kernel drops the lock if the process dies. Raises OSError if it is locked."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
