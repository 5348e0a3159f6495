"""Reads, writes, lists and deletes single objects of a bucket by URL, and explains the errors of a bucket.

fsspec accesses the bucket. Credentials are handled by its libraries (s3fs, gcsfs), local copies by `mirror`.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec

from kdray.errors import StorageError
from kdray.storage.names import has_wildcard
from kdray.storage.safe_json import MAX_JSON_BYTES, check_size

KINDS = {"s3": "s3", "gs": "gcs"}
"""The scheme of a URL -> the extra of kdray that installs the library for such a bucket."""
FOLDER = ".kdray-folder.json"
"""The name of the object that marks a folder as complete; `mirror` describes its content."""


def check_bucket(url: str) -> None:
    """Raise StorageError if objects below this URL cannot be written, listed, read and deleted."""
    probe = f"{url}/.kdray-{uuid4().hex}"
    with name_bucket_errors(url):
        bucket = open_bucket(url)
        bucket.pipe_file(probe, b"kdray")
        if not bucket.ls(url) or bucket.cat_file(probe) != b"kdray":
            raise StorageError(
                f"storage {url}: kdray wrote an object there and cannot list and read it. Name another bucket."
            )
        bucket.rm(probe)


def open_bucket(url: str) -> Any:
    """The fsspec file system for this URL. Raises StorageError if its library is not installed."""
    kind = url.partition("://")[0]
    try:
        # A cached listing would miss the objects that other nodes write and delete.
        return fsspec.filesystem(kind, use_listings_cache=False)
    except ImportError:
        raise StorageError(
            f"storage {url}: the library for such a bucket is not installed. Run: pip install 'kdray[{KINDS[kind]}]', "
            "on every node."
        ) from None


def read_object(url: str, max_bytes: int = MAX_JSON_BYTES) -> bytes | None:
    """The content of the small object at this URL; None if there is no such object.

    Raises StorageError for a longer object, which is stored on the disk but never in memory.
    """
    with name_bucket_errors(url), tempfile.TemporaryDirectory(prefix="kdray-") as folder:
        try:
            open_bucket(url).get_file(url, f"{folder}/object")  # one request, where cat_file makes three
        except FileNotFoundError:
            return None
        file = Path(folder, "object")
        check_size(file.stat().st_size, url, max_bytes)
        return file.read_bytes()


def remove_objects(url: str) -> None:
    """Delete the object at this URL, or all objects below it."""
    names = open_bucket(url).find(url)
    # First the objects that mark folders as complete, so that no reader takes a half-deleted folder for a complete one.
    markers = [name for name in names if name.endswith(f"/{FOLDER}")]
    remove_names(url, markers)
    remove_names(url, [name for name in names if name not in markers])


def remove_names(url: str, names: Sequence[str]) -> None:
    """Delete the objects with these names in the bucket of `url`, as the bucket itself lists them."""
    bucket = open_bucket(url)
    plain = [name for name in names if not has_wildcard(name)]
    if plain:
        bucket.rm(plain)
    for name in names:
        if has_wildcard(name):
            bucket.rm_file(name)  # `rm` would delete all objects that match it


@dataclass(frozen=True)
class BucketObject:
    """A small object that is read and written in the bucket itself, without a local copy."""

    url: str

    def read(self) -> bytes | None:
        """The content of the object; None if it does not exist."""
        return read_object(self.url)

    def write(self, text: bytes, new: bool = False) -> None:
        """Write the object. With `new`, raise FileExistsError if it exists already (a conditional write)."""
        with name_bucket_errors(self.url):
            open_bucket(self.url).pipe_file(self.url, text, mode="create" if new else "overwrite")

    def age_s(self) -> float:
        """Seconds since the object was written, by the bucket's own clock; 0 if it does not exist."""
        # The clocks of the nodes may differ. A second object, written now, gives the time of the bucket.
        now = f"{self.url}-{uuid4().hex}"
        with name_bucket_errors(self.url):
            bucket = open_bucket(self.url)
            bucket.pipe_file(now, b"")
            try:
                return float((bucket.modified(now) - bucket.modified(self.url)).total_seconds())
            except FileNotFoundError:
                return 0.0
            finally:
                bucket.rm(now)

    def remove(self) -> None:
        """Delete the object if it exists."""
        with name_bucket_errors(self.url):
            remove_objects(self.url)


@contextmanager
def name_bucket_errors(url: str) -> Iterator[None]:
    """Turn the errors of the bucket into a StorageError that names `url`, the cause and what to do."""
    try:
        yield
    except (StorageError, FileExistsError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename:
            raise  # an error about a local file of this node, not about the bucket
        raise StorageError(f"storage {url}: {_explain(error)}") from error


def _explain(error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return f"there is no such bucket ({reason}). Create it, or name another one."
    # By name, because the classes are those of botocore and google.auth, which are optional.
    if "Credential" in type(error).__name__ or "credentials" in reason:
        return (
            f"there are no credentials for it here ({reason}). Give them to this process and to every node: "
            "AWS_PROFILE, AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, or the role of the machine."
        )
    if isinstance(error, PermissionError) or getattr(error, "code", None) in (401, 403):
        return f"access denied ({reason}). The credentials must allow to list, read, write and delete objects there."
    return f"the bucket cannot be used ({reason}). What was written is safe; the same command continues from there."
