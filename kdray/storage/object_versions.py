"""Which version of an object in a bucket a local copy is: by the hash or the tag that the bucket lists for the object.

The size alone does not show that an object was replaced. To hash a local file at each look would be slow, so the tag of
the object is remembered with the size and the time of the local file.
"""

import base64
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from kdray.errors import StorageError
from kdray.storage.safe_json import parse_json, read_regular_file


@dataclass
class CopiedVersions:
    """The versions of the objects that the files of one local folder are copies of."""

    file: Path
    """Where they are remembered, outside the folder."""
    entries: dict[str, list[Any]] = field(default_factory=dict)
    """File name -> the version of the object, the size and the modification time (ns) of the local file."""

    @classmethod
    def read(cls, file: Path) -> Self:
        """The versions in this file; none if it cannot be read: then the local files are hashed."""
        known: Any = None
        with suppress(StorageError):
            known = parse_json(read_regular_file(file), file)
        return cls(file, known if isinstance(known, dict) else {})

    def is_current(self, copy: Path, details: Mapping[str, Any]) -> bool:
        """Whether this local file is a copy of the object with these details, as fsspec lists them."""
        try:
            status = copy.lstat()
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(status.st_mode) or status.st_size != details["size"]:
            return False
        if self.entries.get(copy.name) == [_version(details), status.st_size, status.st_mtime_ns]:
            return True
        # This node may have written the file itself, and a file that was sent has no entry yet.
        if _md5(details) != _md5_of_file(copy):
            return False
        self.remember(copy, details)
        return True

    def remember(self, copy: Path, details: Mapping[str, Any]) -> None:
        """Remember that this local file is a copy of the object with these details."""
        status = copy.lstat()
        self.entries[copy.name] = [_version(details), status.st_size, status.st_mtime_ns]

    def write(self) -> None:
        """Write the versions into their file."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_suffix(".new")
        temporary.write_text(json.dumps(self.entries))
        os.replace(temporary, self.file)


def _version(details: Mapping[str, Any]) -> str:
    """The tag of an object, which changes with its content: S3 names it ETag; Google has hashes, and an etag."""
    tags = (details.get(name) for name in ("ETag", "md5Hash", "crc32c", "etag"))
    return next((str(tag) for tag in tags if tag), "")


def _md5(details: Mapping[str, Any]) -> str | None:
    """The MD5 of an object in hexadecimal digits; None if the bucket does not list it.

    The ETag of S3 is the MD5, except for an object that was sent in several parts.
    """
    if hash_of_google := details.get("md5Hash"):
        return base64.b64decode(hash_of_google).hex()
    etag = str(details.get("ETag", "")).strip('"').lower()
    return etag if len(etag) == 32 else None


def _md5_of_file(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
