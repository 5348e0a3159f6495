"""Objects in a bucket, by their URLs: read, written, listed and removed, and what goes wrong as a sentence.

fsspec speaks to the bucket; credentials are its library's business (s3fs, gcsfs), copies on the nodes are `mirror`'s.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec

from kdray.errors import StorageError

KINDS = {"s3": "s3", "gs": "gcs"}
"""A URL's scheme -> the extra of kdray that installs what speaks to such a bucket."""
FOLDER = ".kdray-folder.json"
"""The name of an object that makes the others beside it a whole folder; `mirror` says what is in it."""


def check_bucket(url: str) -> None:
    """Raise StorageError when the bucket below this URL cannot be written, listed and read."""
    probe = f"{url}/.kdray-{uuid4().hex}"
    with name_bucket_errors(url):
        bucket = open_bucket(url)
        bucket.pipe_file(probe, b"kdray")
        if not bucket.ls(url) or bucket.cat_file(probe) != b"kdray":
            raise StorageError(f"storage {url}: what was written there cannot be read again.")
        bucket.rm(probe)


def open_bucket(url: str) -> Any:
    """The file system that has this URL. Raises StorageError when what speaks to it is not installed."""
    kind = url.partition("://")[0]
    try:
        return fsspec.filesystem(kind, use_listings_cache=False)
    except ImportError:
        raise StorageError(
            f"storage {url}: what speaks to such a bucket is not installed. Run: pip install 'kdray[{KINDS[kind]}]', "
            "on every node."
        ) from None


def read_object(url: str) -> bytes | None:
    """What the object holds; None where there is none."""
    with name_bucket_errors(url), tempfile.TemporaryDirectory(prefix="kdray-") as folder:
        try:
            open_bucket(url).get_file(url, f"{folder}/object")  # one request, where cat_file asks three times
        except FileNotFoundError:
            return None
        return Path(folder, "object").read_bytes()


def remove_objects(url: str) -> None:
    """Remove the object, or all that lie below it, first those that make folders whole."""
    bucket = open_bucket(url)
    names = bucket.find(url)
    lists = [name for name in names if name.endswith(f"/{FOLDER}")]
    for part in (lists, [name for name in names if name not in lists]):
        if part:
            bucket.rm(part)


@dataclass(frozen=True)
class BucketObject:
    """A small object that is written and read where it lies, with no copy here."""

    url: str

    def read(self) -> bytes | None:
        """What it says; None where it is not there."""
        return read_object(self.url)

    def write(self, text: bytes, new: bool = False) -> None:
        """Write it; one that is to be `new` raises FileExistsError where somebody has written it before."""
        with name_bucket_errors(self.url):
            open_bucket(self.url).pipe_file(self.url, text, mode="create" if new else "overwrite")

    def age_s(self) -> float:
        """Seconds since it was written, by the bucket's own clock; 0 where it has just gone."""
        clock = f"{self.url}-{uuid4().hex}"
        with name_bucket_errors(self.url):
            bucket = open_bucket(self.url)
            bucket.pipe_file(clock, b"")
            try:
                return float((bucket.modified(clock) - bucket.modified(self.url)).total_seconds())
            except FileNotFoundError:
                return 0.0
            finally:
                bucket.rm(clock)

    def remove(self) -> None:
        """Remove it where it is there."""
        with name_bucket_errors(self.url):
            remove_objects(self.url)


@contextmanager
def name_bucket_errors(url: str) -> Iterator[None]:
    """What goes wrong with the bucket is a sentence that names it."""
    try:
        yield
    except (StorageError, FileExistsError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename:
            raise  # a file of this node
        raise StorageError(f"storage {url}: {_why(error)}") from error


def _why(error: Exception) -> str:
    said = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return f"there is no such bucket ({said}). Make it, or name another one."
    if "Credential" in type(error).__name__ or "credentials" in said:
        return (
            f"there are no credentials for it here ({said}). Give this process and every node's some: AWS_PROFILE, "
            "AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, or the machine's role."
        )
    if isinstance(error, PermissionError) or getattr(error, "code", None) in (401, 403):
        return f"access denied ({said}). The credentials must allow to list, read, write and delete objects there."
    return f"the bucket cannot be used ({said}). What was written is safe; the same command goes on from there."
