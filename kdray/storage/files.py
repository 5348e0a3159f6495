"""Files and folders that are whole or absent, JSON files, scratch folders, and fingerprints of contents.

A writer fills a temporary name, which is renamed when it is complete. Where the storage is a bucket, the content is
sent to the bucket before it is renamed here. Which paths there are is the business of `paths`.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kdray.errors import StorageError
from kdray.storage.mirror import send, url_of

SCRATCH = "kdray-scratch-"

SCRATCH_LOCKED_WITHIN_S = 60.0
"""By then whoever made a scratch folder has locked it, or is dead."""


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits that depend on every part, by value (JSON) and nothing else."""
    text = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_fingerprint(*files: Path) -> str:
    """A fingerprint of the contents of these files, in this order."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A temporary name for a file that takes the place of `path` when the block ends well, and is removed otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        send(temporary, path)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole: a reader never sees a half of it."""
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises StorageError when it is not one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path}: not a readable JSON file ({error}). Restore it, or start over with --fresh."
        ) from None


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `path` when the block ends well, and is removed otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    temporary.chmod(0o755)
    try:
        yield temporary
        send(temporary, path)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def upload_folder(path: Path) -> Iterator[Path]:
    """The same, for a folder that this node needs no more: where the storage is a bucket, it lies there alone."""
    with replace_folder(path) as temporary:
        yield temporary
    if url_of(path):
        shutil.rmtree(path)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder on this machine for what nobody needs after the block; what killed processes left is removed, too."""
    root = Path(tempfile.gettempdir())
    for left in root.glob(f"{SCRATCH}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > SCRATCH_LOCKED_WITHIN_S:
                with _locked_folder(left):
                    shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=root, prefix=SCRATCH))
    with _locked_folder(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder as long as this process lives. Raises OSError where another one does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
