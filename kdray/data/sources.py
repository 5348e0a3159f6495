"""Raw tables from wherever they lie: a file, a folder, the Hugging Face hub, a generator.

Finds the splits and reads them as they are; whether a cell is a text and what a label means is checked in `splits`.
"""

import csv
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, get_args

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from kdray.data.generated import GeneratedReviews
from kdray.data.generated import Split as GeneratedSplit
from kdray.errors import DataError

Column: TypeAlias = list[Any] | pa.ChunkedArray
"""Python values where they came as such (JSON, generated), so that a wrong one can be shown; else Arrow."""

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
SUFFIXES = (*DELIMITERS, ".json", ".jsonl", ".parquet")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
ROWS_START = "rows are counted from 1, without the header"


@dataclass(frozen=True)
class Table:
    """The rows of one file, or of one split from the hub."""

    where: str
    columns: Mapping[str, Column]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column -> the names of its numbers, where the dataset's own features say them."""


class Source(Protocol):
    """Something that has named splits."""

    where: str
    splits: tuple[str, ...]

    def read(self, split: str) -> list[Table]:
        """The tables of one of its splits. Raises DataError."""
        ...


def open_source(
    source: str | GeneratedReviews, config: str | None, revision: str | None, columns: Sequence[str]
) -> Source:
    """The source of this name. Raises DataError when there is none."""
    if isinstance(source, GeneratedReviews):
        return Generated(source)
    path = Path(source).expanduser()
    if path.is_file():
        return Files(str(path), {"train": [_known(path)]}, columns)
    if path.is_dir():
        return _folder(path / config if config else path, columns)
    if path.suffix in SUFFIXES or source.startswith((".", "/", "~")) or not HUB_NAME.fullmatch(source):
        raise DataError(
            f"data.source {source}: no such file or folder. Give a folder with train, validation and test files, "
            f"one file ({', '.join(SUFFIXES)}), or a Hugging Face dataset name such as stanfordnlp/sst2."
        )
    return Hub(source, config, revision)


class Generated:
    """The splits of a generator."""

    splits: tuple[str, ...] = get_args(GeneratedSplit)

    def __init__(self, reviews: GeneratedReviews) -> None:
        self.where, self._reviews = "generated reviews", reviews

    def read(self, split: str) -> list[Table]:
        """The generated rows of one split."""
        columns = self._reviews.rows(split)  # type: ignore[arg-type]
        return [Table(f"{self.where}, split {split!r}", columns)]


class Hub:
    """The splits of a dataset that Hugging Face `datasets` loads."""

    def __init__(self, name: str, config: str | None, revision: str | None) -> None:
        self.where = name if config is None else f"{name} ({config})"
        with _quiet():
            try:
                self._loaded = datasets.load_dataset(name, config, revision=revision)
            except Exception as error:  # the clients below it raise a dozen unrelated types
                raise DataError(
                    f"data.source {self.where}: no such file or folder here, and the Hugging Face hub did not give it "
                    f"({_first_line(error)}). Check the name, data.config and data.revision, and the network; or "
                    f"give a local copy."
                ) from None
        self.splits: tuple[str, ...] = tuple(self._loaded)

    def read(self, split: str) -> list[Table]:
        """The rows of one split."""
        part = self._loaded[split]
        table = part.with_format("arrow")[:]
        where = f"{self.where}, split {split!r}"
        return [Table(where, dict(zip(table.column_names, table.columns, strict=True)), _class_names(part.features))]


class Files:
    """Splits that are files on disk; several files of one split follow each other in the order of their names."""

    def __init__(self, where: str, files: Mapping[str, list[Path]], columns: Sequence[str]) -> None:
        self.where, self._files, self._columns = where, files, columns
        self.splits: tuple[str, ...] = tuple(files)

    def read(self, split: str) -> list[Table]:
        """The rows of one split, file by file."""
        return [_table(path, self._columns) for path in self._files[split]]


def _folder(folder: Path, columns: Sequence[str]) -> Files:
    """The files of a folder, or of its folder `data` as in a copy of a hub repository, by the split in their names.

    A file is a split, train.csv, or a shard of one, train-00000-of-00002.parquet.
    """
    if not folder.is_dir():
        raise DataError(f"data.source {folder}: no such folder (data.config names a folder in data.source).")
    found = {place: files for place in (folder, folder / "data") if (files := _splits_in(place))}
    # Beside a folder `data` there may be other files, such as dataset_infos.json.
    place = next((place for place, files in found.items() if "train" in files), next(iter(found), None))
    if place is None:
        raise DataError(
            f"data.source {folder}: no data files in it. Allowed: train, validation and test with one of the endings "
            f"{', '.join(SUFFIXES)}."
        )
    return Files(str(place), found[place], columns)


def _splits_in(place: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in sorted(place.glob("[!._]*")):
        if path.is_file() and path.suffix in SUFFIXES:
            files.setdefault(re.sub(r"-\d+-of-\d+(-[0-9a-f]+)?$", "", path.stem), []).append(path)
    for split, found in files.items():
        if len({path.suffix for path in found}) > 1:
            raise DataError(
                f"data.source {place}: split {split!r} is there in several formats, {_listed(found)}. Keep one of them."
            )
    return files


def _listed(files: Sequence[Path]) -> str:
    return " and ".join(path.name for path in files)


def _known(path: Path) -> Path:
    if path.suffix not in SUFFIXES:
        raise DataError(
            f"data.source {path}: cannot read files ending in {path.suffix!r}. Allowed: {', '.join(SUFFIXES)}."
        )
    return path


def _table(path: Path, columns: Sequence[str]) -> Table:
    read: Callable[[Path, Sequence[str]], Table] = _delimited if path.suffix in DELIMITERS else _READERS[path.suffix]
    try:
        return read(path, columns)
    except (OSError, csv.Error, pa.ArrowException) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read ({_first_line(error)}). Write the file anew.") from None


def _delimited(path: Path, columns: Sequence[str]) -> Table:
    """A csv file with its quotes; a tsv file without, for there a quote is a character like any other.

    Cells stay bytes: decoding is checked later, where the row can be told.
    """
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty. Give a file with rows, or leave it away.")
    names, skipped = (list(columns), 0) if columns else _header(path)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{path}: two columns are called {twice!r}. Give each a name of its own.")
    wrong: list[pa.csv.InvalidRow] = []

    def keep(row: pa.csv.InvalidRow) -> str:
        wrong.append(row)
        return "skip"

    quoted = path.suffix == ".csv"
    table = pa.csv.read_csv(
        path,
        # Threads would lose the row numbers. Empty lines are no rows.
        read_options=pa.csv.ReadOptions(use_threads=False, column_names=names, skip_rows=skipped),
        parse_options=pa.csv.ParseOptions(
            delimiter=DELIMITERS[path.suffix],
            quote_char='"' if quoted else False,
            double_quote=quoted,
            newlines_in_values=quoted,
            invalid_row_handler=keep,
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.large_binary()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )
    if wrong:
        row = wrong[0].number - skipped
        raise DataError(
            f"{path}, row {row}: {_count(wrong[0].actual_columns)} where there should be "
            f"{_count(wrong[0].expected_columns)} ({', '.join(names)}; {ROWS_START}). Mend the row"
            + (", or data.columns." if columns else ", or name the columns with data.columns if there is no header.")
        )
    return Table(str(path), dict(zip(names, table.columns, strict=True)))


def decode_line(line: bytes, where: str) -> str:
    """The text of a line, without its end. Raises DataError, with where it stands, when it is not UTF-8."""
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(f"{where}: byte {byte:#04x} is not UTF-8. Save it as UTF-8.") from None


def _header(path: Path) -> tuple[list[str], int]:
    """The names in the first line that is not empty, and how many lines there are up to it."""
    with path.open("rb") as file:
        count, line = next(((count, line) for count, line in enumerate(file, 1) if line.strip()), (1, b""))
    text = decode_line(line, f"{path}, header")
    if path.suffix == ".csv":
        return next(csv.reader([text]), [""]), count
    return text.split(DELIMITERS[path.suffix]), count


def _json(path: Path, columns: Sequence[str]) -> Table:
    """A list of objects, or one object a line; a name that an object leaves out is a null."""
    with path.open("rb") as file:
        listed = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    rows = _json_list(path) if listed else _json_lines(path)
    found: dict[str, list[Any]] = {}
    count = 0
    for count, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(
                f'{path}, row {count}: {_shown(row)} is not an object such as {{"text": ..., "label": ...}}.'
            )
        for name, value in row.items():
            if name not in found:
                found[name] = [None] * (count - 1)
            found[name].append(value)
        for values in found.values():
            if len(values) < count:
                values.append(None)
    return Table(str(path), found)


def _json_list(path: Path) -> Iterator[Any]:
    data = path.read_bytes()
    try:
        yield from json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: {_undecodable(error)}") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}). Allowed: a list of objects, or one object a line.") from None


def _json_lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        lines = (line for line in file if line.strip())
        for row, line in enumerate(lines, 1):
            try:
                yield json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, row {row}: {_undecodable(error)}") from None
            except ValueError as error:
                raise DataError(f"{path}, row {row}: not JSON ({error}). Mend the line.") from None


def _parquet(path: Path, columns: Sequence[str]) -> Table:
    table = pa.parquet.read_table(path)
    try:
        features = datasets.Features.from_arrow_schema(table.schema)
    except ValueError:  # a type that datasets does not know, such as a map, has no names of classes
        features = datasets.Features()
    return Table(str(path), dict(zip(table.column_names, table.columns, strict=True)), _class_names(features))


_READERS = {".json": _json, ".jsonl": _json, ".parquet": _parquet}


def _class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(kind.names) for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)}


def _undecodable(error: UnicodeDecodeError) -> str:
    return f"byte {error.object[error.start]:#04x} is not UTF-8. Save the file as UTF-8."


def _count(columns: int) -> str:
    return f"{columns} column" if columns == 1 else f"{columns} columns"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no retry messages from the hub's clients: what went wrong is said in one sentence."""
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [(logger, logger.level) for logger in loggers]
    bars = datasets.are_progress_bars_disabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
