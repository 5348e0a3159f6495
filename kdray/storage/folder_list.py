"""The list of the files of a folder in a bucket, and the list of a folder that is about to replace it.

Both are JSON objects that anybody who can write into the bucket may have written. So each name in them is checked
before a file of that name is read or written, and a list is not read beyond `MAX_LIST_BYTES`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from kdray.errors import StorageError
from kdray.storage.bucket import FOLDER, read_object
from kdray.storage.names import paths_below
from kdray.storage.safe_json import parse_json

STAGING = ".new"
"""The subfolder of a folder in the bucket with the files of the folder that is about to replace it."""
MAX_LIST_BYTES = 16 << 20
"""The longest list that is read: enough for 100,000 files."""


def read_folder_list(url: str) -> dict[str, str] | None:
    """The list of the complete folder at this URL, file name -> SHA-256; None if there is no such folder.

    Raises StorageError for a list with a name that no file below the folder can have.
    """
    place = f"{url}/{FOLDER}"
    text = read_object(place, MAX_LIST_BYTES)
    return None if text is None else _check_files(parse_json(text, place), place)


def check_names(files: Mapping[str, str], source: object) -> None:
    """Raise StorageError if a folder with these files cannot be stored in a bucket, or not be fetched from it."""
    paths_below(Path(), files, source)
    for name in files:
        if name == FOLDER or name.split("/")[0] == STAGING:
            raise StorageError(f"{source}: names a file {name!r}, a name that kdray uses itself. Remove that file.")


@dataclass(frozen=True)
class StagedFolder:
    """A complete folder in the bucket that is about to replace another one, as the JSON object in `STAGING`."""

    files: dict[str, str]
    """The name of each file -> its SHA-256."""
    staged: list[str]
    """The files that differ from the old folder's. They are in `place`; the other files are in the folder already."""
    place: str
    """The subfolder with the staged files; its name has a hash of `files`."""

    @classmethod
    def replacing(cls, before: Mapping[str, str], files: dict[str, str]) -> Self:
        """The folder with these files, staged to replace the one with the files `before`."""
        changed = [name for name in files if before.get(name) != files[name]]
        key = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]
        return cls(files, changed, f"{STAGING}/{key}")

    @classmethod
    def read(cls, url: str) -> Self | None:
        """The folder that is staged at this URL; None if there is none.

        Raises StorageError for a list with a name that no file below the folder can have.
        """
        source = f"{url}/{STAGING}/{FOLDER}"
        text = read_object(source, MAX_LIST_BYTES)
        if text is None:
            return None
        fields = parse_json(text, source)
        if not isinstance(fields, dict) or fields.keys() != {"files", "staged", "place"}:
            raise _damaged(source)
        files, staged, place = _check_files(fields["files"], source), fields["staged"], fields["place"]
        is_list = isinstance(staged, list) and all(isinstance(name, str) and name in files for name in staged)
        if (
            not is_list
            or not isinstance(place, str)
            or not re.fullmatch(rf"{re.escape(STAGING)}/[0-9a-f]{{16}}", place)
        ):
            raise _damaged(source)
        return cls(files, staged, place)

    def to_json(self) -> bytes:
        """The content of the JSON object."""
        return json.dumps(asdict(self)).encode()


def _check_files(files: Any, source: str) -> dict[str, str]:
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise _damaged(source)
    check_names(files, source)
    return files


def _damaged(source: str) -> StorageError:
    return StorageError(
        f"{source}: is not a list of files that kdray wrote. Remove the folder that it is in, and run again."
    )
