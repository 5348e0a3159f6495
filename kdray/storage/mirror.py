"""A storage in a bucket, as each node sees it: a folder that is a copy of what lies below the bucket's URL.

    KDRAY_MIRROR/kdray-mirror/s3/BUCKET/PREFIX/...    mirrors    s3://BUCKET/PREFIX/...

All else in kdray works on paths. A path alone tells what it mirrors, so it goes with a job to any node, which need
share nothing with the driver's but the bucket. The bucket is right: what is asked for (`fetched`) is brought when it is
not here, and goes when the bucket does not have it, whatever an earlier sweep has left here. What is whole is sent
before it takes its name here (`send`; `paths` sees to that), a folder with the list of its files as the last object:
without that list half a folder is none. One that takes another's place is sent beside it first, and the old one is
there until the new one is. For a path that mirrors nothing all of this does nothing.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from kdray.errors import StorageError
from kdray.storage.bucket import FOLDER, KINDS, name_bucket_errors, open_bucket, read_object, remove_objects

MIRROR, ROOT = "kdray-mirror", "KDRAY_MIRROR"
NEW = ".new"
"""Below a folder in the bucket: what is different in the one that shall take its place."""
READS = 3
"""How often a folder is read that is being replaced as it is read."""

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


def fetch(path: Path) -> Path:
    """This path, at which there is now what the bucket has: a whole folder, a file, or nothing."""
    if url := url_of(path):
        with _locked(path), name_bucket_errors(url):
            if not (_fetch_folder(path, url) or _fetch_file(path, url) or _fetch_folder(path, url, replaced=True)):
                _forget(path)
    return path


def fetch_growing(path: Path) -> Path:
    """This file, which only grows: the bucket's, unless the one that is here goes on from it."""
    if url := url_of(path):
        with _locked(path), name_bucket_errors(url):
            _fetch_file(path, url, unless_longer=True)
    return path


def fetch_files(folder: Path) -> Path:
    """This folder of files that are whole each by itself: now those are here that the bucket has."""
    if url := url_of(folder):
        with _locked(folder), name_bucket_errors(url):
            found = open_bucket(url).find(url, detail=True).values()
            sizes = {file["name"].rpartition("/")[2]: file["size"] for file in found}
            here = {file.name: file.stat().st_size for file in folder.glob("[!.]*")}
            for name in here.keys() - sizes.keys():
                (folder / name).unlink()
            missing = [name for name, size in sizes.items() if here.get(name) != size and not name.startswith(".")]
            with _workshop(folder) as new:
                _get({name: f"{url}/{name}" for name in missing}, new)
                for name in missing:
                    _put(new / name, folder / name)
    return folder


def download(path: Path, target: Path) -> bool:
    """Put what the bucket has as the file `path` at `target`, for looking at; whether there is one."""
    text = read_object(url) if (url := url_of(path)) else None
    if text is None:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(text)
    return True


def list_bucket(folder: Path) -> set[Path]:
    """What the bucket has in this folder, here or not."""
    if not (url := url_of(folder)):
        return set()
    with name_bucket_errors(url):
        try:
            return {folder / Path(name).name for name in open_bucket(url).ls(url, detail=False)}
        except FileNotFoundError:
            return set()


def send(source: Path, path: Path) -> None:
    """Let the bucket have this file or folder as `path`; others see it when all of it is there."""
    if not (url := url_of(path)):
        return
    with name_bucket_errors(url):
        if source.is_dir():
            _send_folder(source, url, path)
        else:
            open_bucket(url).put_file(str(source), url)


def remove(path: Path) -> None:
    """Remove a file or folder, here and in the bucket; that there is none is well."""
    if url := url_of(path):
        with name_bucket_errors(url):
            remove_objects(url)
    _forget(path)


def _files(url: str) -> dict[str, str] | None:
    """The list of the whole folder at this URL; None where there is none."""
    text = read_object(f"{url}/{FOLDER}")
    return None if text is None else json.loads(text)


@dataclass(frozen=True)
class _Staged:
    """A folder that is whole, and about to take another one's place."""

    files: dict[str, str]
    staged: list[str]
    """Those of them that differ from the other folder's; they lie in `place`, the others are there already."""
    place: str

    @classmethod
    def read(cls, url: str) -> "_Staged | None":
        text = read_object(f"{url}/{NEW}/{FOLDER}")
        return None if text is None else cls(**json.loads(text))


def _fetch_folder(path: Path, url: str, replaced: bool = False) -> bool:
    """Bring the whole folder at this URL, unless it is here; whether there is one. Nothing is changed in the bucket.

    `replaced`: look for one that is about to take its place, too.
    """
    for also_new in (replaced, *[True] * (READS - 1)):
        sources = {}
        if (files := _files(url)) is None:
            if not also_new or (new := _Staged.read(url)) is None:
                return False
            files, sources = new.files, {name: f"{url}/{new.place}/{name}" for name in new.staged}
        if path.is_dir() and (_SEEN.get(path) == files or _prints(path) == files):
            _SEEN[path] = files
            return True
        with _workshop(path) as folder:
            try:
                _get({name: sources.get(name, f"{url}/{name}") for name in files}, folder)
            except FileNotFoundError:  # it is just being replaced
                continue
            if _prints(folder) == files:
                _forget(path)
                _put(folder, path)
                _SEEN[path] = files
                return True
    raise StorageError(f"storage {url}: its files are not what was sent. Remove that folder and run again.")


def _fetch_file(path: Path, url: str, unless_longer: bool = False) -> bool:
    with _workshop(path) as folder:
        new = folder / path.name
        try:
            open_bucket(url).get_file(url, str(new))
        except FileNotFoundError:
            return False
        same = path.exists() and _begins(path, new) and (unless_longer or path.stat().st_size == new.stat().st_size)
        if not same:  # else the file stays itself, and whoever has it open or locked has the right one
            _put(new, path)
    return True


def _get(objects: Mapping[str, str], folder: Path) -> None:
    """Bring the objects at these URLs under these names."""
    for name in objects:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if objects:
        some = next(iter(objects.values()))
        open_bucket(some).get(list(objects.values()), [str(folder / name) for name in objects])


def _send_folder(source: Path, url: str, path: Path) -> None:
    files = _prints(source)
    if (before := _files(url)) is None and _settled(url):
        before = _files(url)
    if before is None:
        remove_objects(url)
        _put_all(source, list(files), url)
        open_bucket(url).pipe_file(f"{url}/{FOLDER}", json.dumps(files).encode())
    elif before != files:
        remove_objects(f"{url}/{NEW}")
        changed = [name for name in files if before.get(name) != files[name]]
        new = _Staged(files, changed, f"{NEW}/{hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]}")
        _put_all(source, changed, f"{url}/{new.place}")
        open_bucket(url).pipe_file(f"{url}/{NEW}/{FOLDER}", json.dumps(asdict(new)).encode())
        _settled(url)
    _SEEN[path] = files


def _put_all(source: Path, names: list[str], url: str) -> None:
    if names:
        open_bucket(url).put([str(source / name) for name in names], [f"{url}/{name}" for name in names])


def _settled(url: str) -> bool:
    """Let the folder that is staged at this URL take the other one's place; whether there was one.

    Only who sends does this. Done again from wherever it was left, it comes to the same; and all the while whoever
    reads finds one of them whole.
    """
    if (new := _Staged.read(url)) is None:
        return False
    bucket = open_bucket(url)
    remove_objects(f"{url}/{FOLDER}")
    for name in new.staged:
        bucket.copy(f"{url}/{new.place}/{name}", f"{url}/{name}")
    start = f"{url.partition('://')[2]}/"
    for name in {found.removeprefix(start) for found in bucket.find(url)} - new.files.keys():
        if not name.startswith(f"{NEW}/"):
            bucket.rm(f"{url}/{name}")
    bucket.pipe_file(f"{url}/{FOLDER}", json.dumps(new.files).encode())
    remove_objects(f"{url}/{NEW}")
    return True


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


def _put(new: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(new, path)


def _root(path: Path) -> Path:
    """The folder of all mirrors, this one's among them."""
    return Path(*path.parts[: path.parts.index(MIRROR) + 1])


def _name(path: Path) -> str:
    """A name of its own for each path, below the folder of all mirrors."""
    return hashlib.sha256(str(path).encode()).hexdigest()[:16]


@contextmanager
def _workshop(path: Path) -> Iterator[Path]:
    """An empty folder for the block, on the same disk as the path, which is locked; what a killed process left goes."""
    folder = _root(path) / ".new" / _name(path)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process of a node at a time: who comes second finds what the first has brought."""
    folder = _root(path) / ".locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _name(path)).open("w")
    except OSError as error:
        raise StorageError(
            f"{folder.parent}: cannot be written on this node ({error.strerror}), and the copy of {url_of(path)} lies "
            f"there. Give the sweep another folder for it with {ROOT}, one that every node can make."
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
