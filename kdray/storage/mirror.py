"""The local copy, called the mirror, that each node has of a storage in a bucket.

    KDRAY_MIRROR/kdray-mirror/s3/BUCKET/PREFIX/...    mirrors    s3://BUCKET/PREFIX/...

The other modules work with local paths. The URL follows from the path alone, so a job can take a path to any node; the
nodes share only the bucket. For a path outside `kdray-mirror`, `remove` deletes the local file or folder, and the other
functions do nothing.

- **Reading.** The bucket decides. `fetch` copies a file or folder from the bucket if the local copy is missing or
  differs, and deletes the local copy if the bucket has none, so that files of an earlier sweep are never used.
- **Writing.** `send` copies a complete file or folder to the bucket before it gets its local name (`files` does this).
- **Complete folders.** The last object that is written is the list of the folder's files (`bucket.FOLDER`). A folder
  without its list does not exist for readers.
- **Replacing a folder.** The new files are first stored in a subfolder (`folder_list.STAGING`), then copied to their
  places. At any time a reader gets either the complete old folder or the complete new one.

Whoever can write into the bucket chooses the names in it. `names` refuses those that lead out of their folder, before a
file is written or deleted.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdray.errors import StorageError
from kdray.storage.bucket import FOLDER, KINDS, name_bucket_errors, open_bucket, remove_names, remove_objects
from kdray.storage.folder_list import STAGING, StagedFolder, check_names, read_folder_list
from kdray.storage.names import check_links, has_wildcard, path_below, paths_below
from kdray.storage.object_versions import CopiedVersions

MIRROR = "kdray-mirror"
"""The name of the folder with all mirrors of a node."""
MIRROR_VARIABLE = "KDRAY_MIRROR"
"""The environment variable with the path of the folder in which `MIRROR` is made; default: ~/.cache/kdray."""
MAX_READS = 3
"""How often a folder is read at most, if another node replaces it at the same time."""

_VERIFIED: dict[Path, dict[str, str]] = {}
"""Folder -> the list of its files when this process last sent it or found it equal to the bucket's.

It saves a second hash of large files.
"""


def mirror_of(url: str) -> Path:
    """The local folder that mirrors this URL. Raises StorageError if the URL does not name a folder in a bucket.

    The URL must contain no secret, because it is written into settings, logs and reports.
    """
    kind, _, rest = url.partition("://")
    if re.search(r"[@?#]", rest):
        raise StorageError(
            f"storage {kind}://...: there is a name, password or query in the URL, and it would be written into logs. "
            "Leave it out: credentials come from the environment or the role of the machine, on every node."
        )
    bucket, *prefix = rest.rstrip("/").split("/")
    # No part may start with a dot: url_of ignores such names, and `..` would leave the mirror.
    is_odd = has_wildcard(rest) or "\\" in rest or not rest.isprintable()
    if (
        is_odd
        or not re.fullmatch(r"[A-Za-z0-9][\w.:-]*", bucket)
        or any(not re.match(r"[^.\s]", part) for part in prefix)
    ):
        raise StorageError(f"storage {url}: name a bucket and a folder in it, such as {kind}://bucket/kdray.")
    root = Path(os.environ.get(MIRROR_VARIABLE) or Path.home() / ".cache" / "kdray").expanduser().absolute()
    return root.joinpath(MIRROR, kind, bucket, *prefix)


def url_of(path: Path) -> str | None:
    """The URL that the path mirrors; None for a path outside `MIRROR` and for a temporary name (with a leading dot)."""
    if MIRROR not in path.parts:
        return None
    kind, *names = path.parts[path.parts.index(MIRROR) + 1 :] or [""]
    hidden = any(name.startswith(".") for name in names)
    return f"{kind}://{'/'.join(names)}" if kind in KINDS and names and not hidden else None


def fetch(path: Path) -> Path:
    """Make this file or folder equal to the bucket's; delete it if the bucket has none. Returns the path."""
    if url := url_of(path):
        with _lock(path), name_bucket_errors(url):
            # The last case is a sender that died after it had deleted the old list: the staged list is then valid.
            fetched = _fetch_folder(path, url) or _fetch_file(path, url) or _fetch_folder(path, url, staged_too=True)
            if not fetched:
                _remove_local(path)
    return path


def fetch_growing(path: Path) -> Path:
    """Fetch a file that only grows, unless the local file starts with the bucket's content. Returns the path."""
    if url := url_of(path):
        with _lock(path), name_bucket_errors(url):
            _fetch_file(path, url, unless_longer=True)
    return path


def fetch_files(folder: Path) -> Path:
    """Make the files in a folder that has no list of its files equal to the bucket's, one by one. Returns the path.

    A local file is compared by its size, and by the tag of the object that it is a copy of.
    """
    if url := url_of(folder):
        with _lock(folder), name_bucket_errors(url):
            objects = _list_files(folder, url)
            for file in folder.glob("[!.]*"):
                if file.name not in objects:
                    _remove_local(file)
            copied = CopiedVersions.read(_mirror_root(folder) / ".versions" / f"{_unique_name(folder)}.json")
            before = dict(copied.entries)
            missing = [name for name in objects if not copied.is_current(folder / name, objects[name])]
            with _temporary_folder(folder) as temporary:
                _download_objects({name: f"{url}/{name}" for name in missing}, temporary)
                for name in missing:
                    _move(temporary / name, folder / name)
                    copied.remember(folder / name, objects[name])
            if copied.entries != before:
                copied.write()
    return folder


def download(path: Path, target: Path) -> bool:
    """Copy the bucket's file `path` to `target`, outside the mirror. Returns False if the bucket has no such file."""
    if not (url := url_of(path)):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with name_bucket_errors(url):
        try:
            open_bucket(url).get_file(url, str(target))
        except FileNotFoundError:
            return False
    return True


def list_bucket(folder: Path) -> set[Path]:
    """The paths of all files and folders that the bucket has in this folder, fetched or not.

    Raises StorageError for a name that no file in the folder can have: the callers delete what they find.
    """
    if not (url := url_of(folder)):
        return set()
    with name_bucket_errors(url):
        try:
            names = _names_below(url, open_bucket(url).ls(url, detail=False))
        except FileNotFoundError:
            return set()
    return {path_below(folder, name, url) for name in names}


def send(source: Path, path: Path) -> None:
    """Copy the file or folder `source` to the bucket as `path`; other nodes see it once it is complete."""
    if not (url := url_of(path)):
        return
    with name_bucket_errors(url):
        if source.is_dir():
            _send_folder(source, url, path)
        else:
            open_bucket(url).put_file(str(source), url)


def delete(path: Path) -> None:
    """Delete a file or folder in the bucket and on this node, if it exists."""
    if url := url_of(path):
        with name_bucket_errors(url):
            remove_objects(url)
    _remove_local(path)


def _list_files(folder: Path, url: str) -> dict[str, dict[str, Any]]:
    """The details of each object in this folder, by file name; without hidden ones, and without subfolders."""
    details = open_bucket(url).find(url, detail=True)
    names = _names_below(url, details)
    paths_below(folder, names, url)
    return {name: details[full] for name, full in names.items() if "/" not in name and not name.startswith(".")}


def _names_below(url: str, names: Iterable[str]) -> dict[str, str]:
    """Name relative to the URL -> the name as the bucket lists it. Without the empty objects that stand for folders."""
    start = f"{url.partition('://')[2]}/"
    below = {name.removeprefix(start).rstrip("/"): name for name in names if name.startswith(start)}
    return {name: full for name, full in below.items() if name}


def _fetch_folder(path: Path, url: str, staged_too: bool = False) -> bool:
    """Fetch the complete folder at this URL unless the local one is equal. Returns False if there is no such folder.

    With `staged_too`, also look for a folder that is about to replace it. Only reads from the bucket. Raises
    StorageError if the hashes of the files differ from the list.
    """
    for attempt in range(MAX_READS):
        files = read_folder_list(url)
        sources: dict[str, str] = {}
        if files is None:
            # After a failed attempt, the list is missing because the sender has just deleted it: see _commit_staged.
            staged = StagedFolder.read(url) if staged_too or attempt > 0 else None
            if staged is None:
                return False
            files = staged.files
            sources = {name: f"{url}/{staged.place}/{name}" for name in staged.staged}
        if path.is_dir() and (_VERIFIED.get(path) == files or _hash_files(path) == files):
            _VERIFIED[path] = files
            return True
        with _temporary_folder(path) as folder:
            try:
                _download_objects({name: sources.get(name, f"{url}/{name}") for name in files}, folder)
            except FileNotFoundError:  # another node replaces the folder just now
                continue
            if _hash_files(folder) == files:
                _remove_local(path)
                _move(folder, path)
                _VERIFIED[path] = files
                return True
    raise StorageError(
        f"storage {url}: the hashes of its files differ from its list {FOLDER}. Remove that folder and run again."
    )


def _fetch_file(path: Path, url: str, unless_longer: bool = False) -> bool:
    """Fetch the file at this URL. Returns False if there is no such object.

    With `unless_longer`, keep a local file that starts with the bucket's content.
    """
    with _temporary_folder(path) as folder:
        new = folder / path.name
        try:
            open_bucket(url).get_file(url, str(new))
        except FileNotFoundError:
            return False
        equal = (
            path.exists() and _starts_with(path, new) and (unless_longer or path.stat().st_size == new.stat().st_size)
        )
        if not equal:  # an equal file is not replaced: processes that have it open or locked keep the right inode
            _move(new, path)
    return True


def _download_objects(objects: Mapping[str, str], folder: Path) -> None:
    """Download objects, file name -> URL, into a folder, in one call that transfers them concurrently."""
    for name in objects:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if objects:
        any_url = next(iter(objects.values()))
        open_bucket(any_url).get(list(objects.values()), [str(folder / name) for name in objects])


def _send_folder(source: Path, url: str, path: Path) -> None:
    files = _hash_files(source)
    check_names(files, path)  # no node could fetch a folder with other names
    check_links(source, source)  # a link would publish the file that it leads to
    before = read_folder_list(url)
    if before is None and _commit_staged(url):  # an earlier sender died while it replaced the folder
        before = read_folder_list(url)
    if before is None:
        remove_objects(url)  # what an earlier sender left without a list
        _upload(source, list(files), url)
        open_bucket(url).pipe_file(f"{url}/{FOLDER}", json.dumps(files).encode())
    elif before != files:
        remove_objects(f"{url}/{STAGING}")
        new = StagedFolder.replacing(before, files)
        _upload(source, new.staged, f"{url}/{new.place}")
        open_bucket(url).pipe_file(f"{url}/{STAGING}/{FOLDER}", new.to_json())
        _commit_staged(url)
    _VERIFIED[path] = files


def _upload(source: Path, names: list[str], url: str) -> None:
    if names:
        open_bucket(url).put([str(source / name) for name in names], [f"{url}/{name}" for name in names])


def _commit_staged(url: str) -> bool:
    """Replace the folder at this URL by the one that is staged there. Returns False if none is staged.

    Only the sender of the folder calls this. It can stop at any step and be called again: each step is idempotent, and
    a reader finds a complete folder at any time, first in the old list, then in the staged list, then in the new list.
    """
    if (new := StagedFolder.read(url)) is None:
        return False
    bucket = open_bucket(url)
    remove_objects(f"{url}/{FOLDER}")  # first: from here on the old list would describe a mixture of both folders
    for name in new.staged:
        # As lists: fsspec takes a single name for all names that match it.
        bucket.copy([f"{url}/{new.place}/{name}"], [f"{url}/{name}"])
    names = _names_below(url, bucket.find(url))
    others = [name for name in names.keys() - new.files.keys() if not name.startswith(f"{STAGING}/")]
    remove_names(url, [names[name] for name in others])
    bucket.pipe_file(f"{url}/{FOLDER}", json.dumps(new.files).encode())
    remove_objects(f"{url}/{STAGING}")
    return True


def _hash_files(folder: Path) -> dict[str, str]:
    """The name of each file relative to the folder -> its SHA-256."""
    hashes = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            with file.open("rb") as opened:
                hashes[file.relative_to(folder).as_posix()] = hashlib.file_digest(opened, "sha256").hexdigest()
    return hashes


def _starts_with(path: Path, start: Path) -> bool:
    """Whether the content of `path` starts with the content of `start`."""
    with path.open("rb") as longer, start.open("rb") as shorter:
        while part := shorter.read(1 << 20):
            if longer.read(len(part)) != part:
                return False
    return True


def _remove_local(path: Path) -> None:
    """Delete the file or folder on this node only."""
    _VERIFIED.pop(path, None)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _move(new: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(new, path)


def _mirror_root(path: Path) -> Path:
    """The folder with all mirrors of this node."""
    return Path(*path.parts[: path.parts.index(MIRROR) + 1])


def _unique_name(path: Path) -> str:
    """A file name that no other path has."""
    return hashlib.sha256(str(path).encode()).hexdigest()[:16]


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder for the block, on the same file system as `path`. The caller must hold the lock of `path`.

    The name is the same for each call, so the block also deletes what a killed process left.
    """
    folder = _mirror_root(path) / ".new" / _unique_name(path)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one process of this node at a time fetch `path`; the next one then finds the copy and fetches nothing."""
    folder = _mirror_root(path) / ".locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _unique_name(path)).open("w")
    except OSError as error:
        raise StorageError(
            f"{folder.parent}: cannot be written on this node ({error.strerror}), but the local copy of {url_of(path)} "
            f"belongs there. Set {MIRROR_VARIABLE} to a folder that every node can make."
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
