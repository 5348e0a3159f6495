"""Data files by their names: format, compression and split; and the stream of a file's bytes, unpacked and counted.

A zip archive stands for the data files in it. Nothing is unpacked to a disk.
"""

import bz2
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import pyarrow as pa

from kdray.errors import DataError, first_line
from kdray.sources.memory import Budget

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
"""The usual delimiter in files with this ending."""
JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
COLUMNAR_ENDINGS = (".parquet", ".arrow", ".feather")
CONLLU_ENDING = ".conllu"
CONLL_ENDINGS = (".conll", CONLLU_ENDING, ".bio", ".iob", ".iob2")
ENDINGS = (*DELIMITERS, *JSON_ENDINGS, *COLUMNAR_ENDINGS, *CONLL_ENDINGS)
COMPRESSIONS = (".gz", ".bz2", ".zst", ".zip")
READABLE = f"{', '.join(ENDINGS)}; also compressed ({', '.join(COMPRESSIONS)})"
"""For messages."""

READ_ERRORS = (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError, pa.ArrowException)
"""What a damaged or truncated file raises. RuntimeError: a zip archive with a password."""

_NAME = re.compile(
    rf"(?P<stem>.+)(?P<ending>{'|'.join(map(re.escape, ENDINGS))})(?P<packed>\.gz|\.bz2|\.zst)?",
    re.IGNORECASE | re.DOTALL,
)
_OTHER_NAME = re.compile(r"(?P<stem>.+?)(?P<ending>\.[^.]*)?(?P<packed>\.gz|\.bz2|\.zst)?", re.IGNORECASE | re.DOTALL)
"""A file whose format `data.format` names, whatever its ending."""
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d+)-of-(?P<count>\d+)(?:-[0-9a-f]+)?", re.DOTALL)
_ZIP_ENDING = re.compile(rf"(?:{'|'.join(map(re.escape, ENDINGS))})?\.zip$", re.IGNORECASE)
_SIGNATURES = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\x28\xb5\x2f\xfd": ".zst", b"PK\x03\x04": ".zip"}
"""How a compressed file begins -> the ending that its name should have."""


@dataclass(frozen=True)
class Shard:
    """Which part of a split a file is: `train-00001-of-00003` is part 1 of 3."""

    number: int
    count: int


@dataclass(frozen=True)
class DataFile:
    """A file with rows, or a member of a zip archive."""

    path: Path
    name: str
    """The name that the format and the split follow from: of the file or of the member."""
    member: str | None = None
    """The member of the archive at `path`; None for a file that is no archive."""

    @property
    def where(self) -> str:
        """The file, for messages."""
        return str(self.path) if self.member is None else f"{self.path} ({self.member})"

    @cached_property
    def ending(self) -> str:
        """The ending that names the format, in small letters: `.csv` for reviews.CSV.gz."""
        return (self._match["ending"] or "").lower()

    @cached_property
    def compression(self) -> str | None:
        """The ending that names the compression; None for a plain file."""
        packed = self._match["packed"]
        return packed.lower() if packed else None

    @cached_property
    def shard(self) -> Shard | None:
        """The part of its split that the name says; None for a whole split."""
        match = _SHARD.fullmatch(self._match["stem"])
        return Shard(int(match["number"]), int(match["count"])) if match else None

    @cached_property
    def split(self) -> str:
        """The name of the split: the name of the file without endings and without the number of the part."""
        match = _SHARD.fullmatch(self._match["stem"])
        return match["split"] if match else self._match["stem"]

    @property
    def is_usual(self) -> bool:
        """Whether it is not compressed and has one of the usual endings: it is preferred to other copies of it."""
        rare = (".ndjson", ".arrow", ".feather")
        return self.member is None and Path(self.name).suffix in ENDINGS and self.ending not in rare

    @cached_property
    def _match(self) -> re.Match[str]:
        match = _NAME.fullmatch(self.name) or _OTHER_NAME.fullmatch(self.name)
        if match is None:
            raise ValueError(f"{self.name!r} is not the name of a file")
        return match


def data_files_at(path: Path, any_ending: bool = False) -> list[DataFile]:
    """The data files that a path stands for: itself, or the members of a zip archive; none for another ending.

    If `any_ending`, a file with another ending stands for itself, and an archive in which no ending is known stands for
    all its members. Raises DataError for an archive that cannot be read.
    """
    if path.suffix.lower() == ".zip":
        return _archive_members(path, any_ending)
    return [DataFile(path, path.name)] if any_ending or _NAME.fullmatch(path.name) else []


@contextmanager
def open_data(file: DataFile, budget: Budget) -> Iterator[BinaryIO]:
    """Open a file for reading, unpacked. Reading raises DataError when it is longer than the budget allows.

    The budget is only checked: the caller counts the rows that it makes of the bytes.
    """
    with ExitStack() as stack:
        packed: Any = stack.enter_context(file.path.open("rb"))
        if file.member is not None:
            packed = stack.enter_context(stack.enter_context(zipfile.ZipFile(packed)).open(file.member))
        stream = io.BufferedReader(_CountedBytes(_unpacked(packed, file.compression), budget, file.where), 1 << 20)
        if file.compression is None and file.ending not in COLUMNAR_ENDINGS:
            _check_signature(stream, file)
        yield cast(BinaryIO, stream)


def unreadable(where: str, error: BaseException) -> DataError:
    """The error for a file that is damaged, truncated, or not in the format that its name says."""
    if isinstance(error, EOFError):
        return DataError(f"{where}: the file is incomplete. Copy or download it again.")
    return DataError(f"{where}: cannot be read ({first_line(error)}). Write the file again.")


def _archive_members(path: Path, any_ending: bool) -> list[DataFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            visible = [info for info in archive.infolist() if not info.is_dir() and _is_visible(info.filename)]
            # Beside files with known endings, others explain them, such as a LICENSE.
            infos = [info for info in visible if _NAME.fullmatch(PurePosixPath(info.filename).name)]
            infos = infos or (visible if any_ending else [])
    except READ_ERRORS as error:
        raise unreadable(str(path), error) from None
    for info in infos:
        # The other methods unpack a whole block at once, however large it is.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(
                f"{path} ({info.filename}): cannot be read. Pack the archive with deflate, the usual method."
            )
    names = [PurePosixPath(info.filename).name for info in infos]
    if len(infos) == 1:
        # An archive with a single file is named like that file, and its own name says more: train.zip with rows.csv.
        inner = DataFile(path, names[0])
        names = [_ZIP_ENDING.sub("", path.name) + inner.ending + (inner.compression or "")]
    return [DataFile(path, name, info.filename) for name, info in zip(names, infos, strict=True)]


def _is_visible(name: str) -> bool:
    # macOS adds a folder __MACOSX with hidden copies that hold no rows.
    return not any(part.startswith((".", "_")) for part in PurePosixPath(name).parts)


def _unpacked(stream: Any, compression: str | None) -> Any:
    match compression:
        case ".gz":
            return gzip.GzipFile(fileobj=stream)
        case ".bz2":
            return bz2.BZ2File(stream)
        case ".zst":
            return pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
        case _:
            return stream


def _check_signature(stream: Any, file: DataFile) -> None:
    """Raise DataError for a compressed file whose name does not say that it is compressed."""
    start = stream.peek(4)[:4]
    for signature, ending in _SIGNATURES.items():
        if start.startswith(signature):
            raise DataError(f"{file.where}: the file is compressed. Name it {file.name}{ending}, or unpack it.")


class _CountedBytes(io.RawIOBase):
    """A stream that checks against a budget how much was read from it."""

    def __init__(self, stream: Any, budget: Budget, where: str) -> None:
        self._stream, self._budget, self._where, self._size = stream, budget, where, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._size += len(data)
        self._budget.check(self._size, self._where)
        buffer[: len(data)] = data
        return len(data)
