"""Names that come from outside: from a bucket, a list of files, a manifest, a spool. Where such a name may lead.

`path_below` and `paths_below` are the only places where a path is joined with such a name. Who can write into a bucket
or a folder chooses the names in it, and a name such as `../../.bashrc` must not choose where kdray writes.

A symbolic link in a folder of kdray may come from outside as well (a copied or unpacked folder keeps its links).
`check_links` refuses the links that lead out of the folder, before something is written or deleted below it. It also
refuses pipes, sockets and devices: who opens a pipe waits until another process opens it, too.
"""

import os
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from kdray.errors import StorageError
from kdray.safe_text.escaping import printable

MAX_PART_BYTES = 255
"""The longest name of one file or folder that Linux and macOS can store."""
MAX_NAME_BYTES = 2000
"""The longest name with its folders. The path of the folder before it needs the rest of the 4,096 bytes of a path."""
WILDCARDS = "*?["
"""fsspec replaces a name with one of these by all objects that match it, for example when it deletes."""


def path_below(folder: Path, name: object, source: object) -> Path:
    """The path of the file with this name, relative with `/` between its parts, below this folder.

    Raises StorageError, with `source` as the place that the name comes from, if the name is anything else: it is no
    text, leads to another folder, or cannot be the name of a file on Linux and macOS.
    """
    if (reason := _reason_against(name)) is not None:
        raise StorageError(
            f"{source}: names a file {printable(repr(name), 100)}, which {reason}. kdray never writes such a name, so "
            "nothing was read or written there. Remove it, or name another storage."
        )
    return folder / str(name)


def paths_below(folder: Path, names: Iterable[object], source: object) -> dict[str, Path]:
    """Name -> path, for all files that a folder is to contain. Raises StorageError as `path_below` does.

    Also refuses two names that are one file where capital letters or composed letters do not count (macOS), and a file
    that is the folder of another one.
    """
    paths = {str(name): path_below(folder, name, source) for name in names}
    files: dict[str, str] = {}
    for name in paths:
        if (other := files.setdefault(_folded(name), name)) != name:
            _refuse_collision(name, other, source)
    for name in paths:
        for parent in PurePosixPath(name).parents:
            if (file := files.get(_folded(str(parent)))) is not None:
                _refuse_collision(name, file, source)
    return paths


def has_wildcard(name: str) -> bool:
    """Whether fsspec would take this name for all names that match it."""
    return any(wildcard in name for wildcard in WILDCARDS)


def check_links(folder: Path, root: Path) -> None:
    """Raise StorageError if something below `folder`, or `folder` itself, is a symbolic link that leads out of `root`.

    Links that stay inside are followed. Also raises it for what is no regular file, folder or link. A missing folder
    has no links.
    """
    inside = root.resolve()
    for path in [folder] if folder.is_symlink() else _odd_entries_below(folder):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise StorageError(f"{path}: is no regular file. kdray reads and writes regular files only; remove it.")
        if path.is_symlink() and not _leads_into(path, inside):
            raise StorageError(
                f"{path}: is a link to {printable(path.readlink())}, outside of {root}. kdray follows no such link, "
                "because it would read, write or delete files there. Remove the link, or put the folder in its place."
            )


def check_regular_files(folder: Path, root: Path | None = None) -> None:
    """Raise StorageError if something in this folder is a link that leads out of it, or no regular file.

    With `root`, the folder itself must also lie below `root` when all links are followed. The files of such a folder
    are read and published: a link would publish a private file, and a pipe would block its reader.
    """
    if root is not None and not folder.resolve().is_relative_to(root.resolve()):
        raise StorageError(
            f"{folder}: leads out of {root} through a link. kdray follows no such link. Put the folder itself there."
        )
    check_links(folder, folder)


def _odd_entries_below(folder: Path) -> Iterator[Path]:
    """The symbolic links below this folder, and what is neither a regular file nor a folder.

    Reads the folders only, because the kind of an entry is part of them.
    """
    folders = [str(folder)]
    while folders:
        # Another process may delete a folder meanwhile.
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    yield Path(entry.path)


def _leads_into(link: Path, folder: Path) -> bool:
    """Whether a link leads to something below this folder, after all further links are followed."""
    try:
        return link.resolve().is_relative_to(folder)
    except (OSError, RuntimeError):  # links that lead to each other
        return False


def _reason_against(name: object) -> str | None:
    """Why this cannot be the name of a file below a folder, in words; None if it can."""
    if not isinstance(name, str):
        return "is no text"
    parts = name.split("/")
    try:
        lengths = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        return "is no valid text"
    if not name.isprintable() or "\\" in name:
        return "has a control character or a backslash in it"
    if has_wildcard(name):
        return f"has one of the characters {WILDCARDS} in it"
    # An empty part is the first one of an absolute path, the last one of a folder, or the middle of `a//b`.
    if any(part in ("", ".", "..") or part != part.strip() for part in parts):
        return "does not lead to a file below its folder"
    if max(lengths) > MAX_PART_BYTES or sum(lengths) + len(parts) > MAX_NAME_BYTES:
        return "is too long"
    return None


def _folded(name: str) -> str:
    """The name as a file system compares it that ignores capital letters and how letters are composed."""
    return unicodedata.normalize("NFC", name).casefold()


def _refuse_collision(name: str, other: str, source: object) -> None:
    raise StorageError(
        f"{source}: names the files {printable(other, 100)!r} and {printable(name, 100)!r}, which cannot both exist in "
        "a folder on every machine. Remove one of them."
    )
