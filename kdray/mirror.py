"""A storage in a bucket, as each node sees it: a folder that is a copy of what lies below the bucket's URL.

    KDRAY_MIRROR/kdray-mirror/s3/BUCKET/PREFIX/...    mirrors    s3://BUCKET/PREFIX/...

All else in kdray works on paths. A path alone tells what it mirrors, so it goes with a job to any node, which need
share nothing with the driver's but the bucket. The bucket is right: what is asked for (`fetched`) is brought when it is
not here, and goes when the bucket does not have it, whatever an earlier sweep has left here. What is whole is sent
before it takes its name here (`send`; `paths` sees to that), a folder with the list of its files as the last object:
without that list half a folder is none. For a path that mirrors nothing all of this does nothing.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec

from kdray.errors import StorageError

MIRROR, ROOT = "kdray-mirror", "KDRAY_MIRROR"
KINDS = {"s3": "s3", "gs": "gcs"}
"""A URL's scheme -> the extra of kdray that installs what speaks to such a bucket."""
LIST = ".kdray-folder.json"
"""The object that makes a folder whole: its files' names and SHA-256."""

_SEEN: dict[Path, dict[str, str]] = {}
"""Folders that this process has found, or made, like the bucket's."""


def mirror_of(url: str) -> Path:
    """The local folder of this URL. Raises StorageError for a URL that is none of a folder in a bucket.

    Nothing in a URL may be secret: it is written into settings, logs and reports.
    """
    kind, _, rest = url.partition("://")
    if re.search(r"[@?#]", rest):
        raise StorageError(
            f"storage {kind}://...: there is a name, password or query in the URL, and it would be written into logs. "
            "Leave it out: credentials come from the environment or the machine's role, on every node."
        )
    bucket, *prefix = rest.rstrip("/").split("/")
    if not re.fullmatch(r"[A-Za-z0-9][\w.:-]*", bucket) or any(not re.match(r"[^.\s]", part) for part in prefix):
        raise StorageError(f"storage {url}: name a bucket and a folder in it, such as {kind}://bucket/kdray.")
    root = Path(os.environ.get(ROOT) or Path.home() / ".cache" / "kdray").expanduser().absolute()
    return root.joinpath(MIRROR, kind, bucket, *prefix)


def url_of(path: Path) -> str | None:
    """What the path mirrors; None for a path of a plain folder, and for the hidden name of something unfinished."""
    if MIRROR not in path.parts:
        return None
    kind, *names = path.parts[path.parts.index(MIRROR) + 1 :] or [""]
    hidden = any(name.startswith(".") for name in names)
    return f"{kind}://{'/'.join(names)}" if kind in KINDS and names and not hidden else None


def check(url: str) -> None:
    """Raise StorageError when the bucket below this URL cannot be written, listed and read."""
    probe = f"{url}/.kdray-{uuid4().hex}"
    with _named(url):
        bucket = _bucket(url)
        bucket.pipe_file(probe, b"kdray")
        if not bucket.ls(url) or bucket.cat_file(probe) != b"kdray":
            raise StorageError(f"storage {url}: what was written there cannot be read again.")
        bucket.rm(probe)


def fetched(path: Path) -> Path:
    """This path, at which there is now what the bucket has: a whole folder, a file, or nothing."""
    if url := url_of(path):
        with _locked(path), _named(url):
            if (files := _files(url)) is not None:
                _fetch_folder(path, url, files)
            elif not _fetch_file(path, url):
                _forget(path)
    return path


def continued(path: Path) -> Path:
    """This file, which only grows: the bucket's, unless the one that is here goes on from it."""
    if url := url_of(path):
        with _locked(path), _named(url):
            _fetch_file(path, url, unless_longer=True)
    return path


def gathered(folder: Path) -> Path:
    """This folder of files that are whole each by itself: now those are here that the bucket has."""
    if url := url_of(folder):
        with _locked(folder), _named(url):
            found = _bucket(url).find(url, detail=True).values()
            sizes = {file["name"].rpartition("/")[2]: file["size"] for file in found}
            here = {file.name: file.stat().st_size for file in folder.glob("[!.]*")}
            for name in here.keys() - sizes.keys():
                (folder / name).unlink()
            missing = [name for name, size in sizes.items() if here.get(name) != size and not name.startswith(".")]
            with _beside(folder) as temporary:
                _get(url, missing, temporary)
                folder.mkdir(parents=True, exist_ok=True)
                for name in missing:
                    os.replace(temporary / name, folder / name)
    return folder


def brought(path: Path, target: Path) -> bool:
    """Put what the bucket has as the file `path` at `target`, for looking at; whether there is one."""
    url = url_of(path)
    with _named(str(url)):
        return url is not None and _fetch_file(target, url)


def listed(folder: Path) -> set[Path]:
    """What the bucket has in this folder, here or not."""
    if not (url := url_of(folder)):
        return set()
    with _named(url):
        try:
            return {folder / Path(name).name for name in _bucket(url).ls(url, detail=False)}
        except FileNotFoundError:
            return set()


def send(source: Path, path: Path) -> None:
    """Let the bucket have this file or folder as `path`; others see it when all of it is there."""
    if not (url := url_of(path)):
        return
    with _named(url):
        if source.is_dir():
            _send_folder(source, url, path)
        else:
            _bucket(url).put_file(str(source), url)


def remove(path: Path) -> None:
    """Remove a file or folder, here and in the bucket; that there is none is well."""
    if url := url_of(path):
        with _named(url):
            _remove(url)
    _forget(path)


@dataclass(frozen=True)
class Note:
    """A small object that is written and read where it lies, with no copy here."""

    url: str

    def read(self) -> bytes | None:
        """What it says; None where it is not there."""
        with _named(self.url):
            try:
                said: bytes = _bucket(self.url).cat_file(self.url)
            except FileNotFoundError:
                return None
            return said

    def write(self, text: bytes, new: bool = False) -> None:
        """Write it; one that is to be `new` raises FileExistsError where somebody has written it before."""
        with _named(self.url):
            _bucket(self.url).pipe_file(self.url, text, mode="create" if new else "overwrite")

    def age_s(self) -> float:
        """Seconds since it was written, by the bucket's own clock; 0 where it has just gone."""
        clock = f"{self.url}-{uuid4().hex}"
        with _named(self.url):
            bucket = _bucket(self.url)
            bucket.pipe_file(clock, b"")
            try:
                return float((bucket.modified(clock) - bucket.modified(self.url)).total_seconds())
            except FileNotFoundError:
                return 0.0
            finally:
                bucket.rm(clock)

    def remove(self) -> None:
        """Remove it where it is there."""
        with _named(self.url):
            _remove(self.url)


def _bucket(url: str) -> Any:
    kind = url.partition("://")[0]
    try:
        return fsspec.filesystem(kind, use_listings_cache=False)
    except ImportError:
        raise StorageError(
            f"storage {url}: what speaks to such a bucket is not installed. Run: pip install 'kdray[{KINDS[kind]}]', "
            "on every node."
        ) from None


def _files(url: str) -> dict[str, str] | None:
    """The list of the whole folder at this URL; None where there is none."""
    try:
        files: dict[str, str] = json.loads(_bucket(url).cat_file(f"{url}/{LIST}"))
    except FileNotFoundError:
        return None
    return files


def _fetch_folder(path: Path, url: str, files: dict[str, str]) -> None:
    if not path.is_dir() or (_SEEN.get(path) != files and _prints(path) != files):
        with _beside(path) as temporary:
            _get(url, list(files), temporary)
            if _prints(temporary) != files:
                raise StorageError(f"storage {url}: its files are not what was sent. Remove that folder and run again.")
            _forget(path)
            os.replace(temporary, path)
    _SEEN[path] = files


def _fetch_file(path: Path, url: str, unless_longer: bool = False) -> bool:
    with _beside(path) as temporary:
        new = temporary / path.name
        try:
            _bucket(url).get_file(url, str(new))
        except FileNotFoundError:
            return False
        if not (unless_longer and path.exists() and _begins(path, new)):
            os.replace(new, path)
    return True


def _get(url: str, names: list[str], folder: Path) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if names:
        _bucket(url).get([f"{url}/{name}" for name in names], [str(folder / name) for name in names])


def _send_folder(source: Path, url: str, path: Path) -> None:
    files = _prints(source)
    if _files(url) != files:
        _remove(url)
        _bucket(url).put([str(source / name) for name in files], [f"{url}/{name}" for name in files])
        _bucket(url).pipe_file(f"{url}/{LIST}", json.dumps(files).encode())
    _SEEN[path] = files


def _remove(url: str) -> None:
    """Remove all that lies there, the lists that make folders whole first."""
    bucket = _bucket(url)
    names = bucket.find(url)
    lists = [name for name in names if name.endswith(f"/{LIST}")]
    for part in (lists, [name for name in names if name not in lists]):
        if part:
            bucket.rm(part)


def _prints(folder: Path) -> dict[str, str]:
    """Each file's name below the folder -> its SHA-256."""
    prints = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            with file.open("rb") as opened:
                prints[file.relative_to(folder).as_posix()] = hashlib.file_digest(opened, "sha256").hexdigest()
    return prints


def _begins(path: Path, start: Path) -> bool:
    """Whether the file begins with what is in the other one."""
    with path.open("rb") as longer, start.open("rb") as shorter:
        while part := shorter.read(1 << 20):
            if longer.read(len(part)) != part:
                return False
    return True


def _forget(path: Path) -> None:
    """Remove it here."""
    _SEEN.pop(path, None)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A hidden folder beside the path, for the block."""
    folder = path.with_name(f".{path.name}-{uuid4().hex}")
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process of a node at a time: who comes second finds what the first has brought."""
    at = path.parts.index(MIRROR)
    folder = Path(*path.parts[: at + 1], ".locks")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / hashlib.sha256(str(path).encode()).hexdigest()[:16]).open("w")
    except OSError as error:
        raise StorageError(
            f"{folder.parent}: cannot be written on this node ({error.strerror}), and the copy of {url_of(path)} lies "
            f"there. Give the sweep another folder for it with {ROOT}, one that every node can make."
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _named(url: str) -> Iterator[None]:
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
