"""Raw tables from a file, a folder, the Hugging Face hub or a generator.

This module finds the splits and reads their rows without a check of single cells: `cells` checks texts and labels,
`splits` puts the splits together.
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
from kdray.errors import DataError, first_line

Column: TypeAlias = list[Any] | pa.ChunkedArray
"""The cells of a column: a list of Python values (from JSON and generators) or an Arrow array (from all other sources).

JSON values stay Python values because Arrow accepts no mixed types: a message can then show the wrong cell.
"""

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
SUFFIXES = (*DELIMITERS, ".json", ".jsonl", ".parquet")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
ROWS_START = "rows are counted from 1, without the header"
LONGEST_REPR = 60
"""Characters."""


@dataclass(frozen=True)
class Table:
    """The rows of one file, or of one split from the hub."""

    where: str
    """The file or split, for messages."""
    columns: Mapping[str, Column]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column -> the names of the numbers 0, 1, ... in it, if the dataset's own features define them."""


class Source(Protocol):
    """Data that consist of named splits."""

    where: str
    splits: tuple[str, ...]

    def read(self, split: str) -> list[Table]:
        """Read the tables of one split. Raises DataError if they cannot be read."""
        ...


def open_source(
    source: str | GeneratedReviews, config: str | None, revision: str | None, columns: Sequence[str]
) -> Source:
    """Open a generator, a file, a folder or a dataset on the hub; `columns` are the names for files without a header.

    A name that could be both a local path and a hub dataset is the local path. Raises DataError if there is no such
    source. A hub dataset is downloaded here, unless it is in the cache of `datasets`.
    """
    if isinstance(source, GeneratedReviews):
        return Generated(source)
    path = Path(source).expanduser()
    if path.is_file():
        return Files(str(path), {"train": [_check_suffix(path)]}, columns)
    if path.is_dir():
        return _open_folder(path / config if config else path, columns)
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
        """Generate the rows of one split."""
        columns = self._reviews.rows(split)  # type: ignore[arg-type]
        return [Table(f"{self.where}, split {split!r}", columns)]


class Hub:
    """The splits of a dataset that Hugging Face `datasets` loads."""

    def __init__(self, name: str, config: str | None, revision: str | None) -> None:
        self.where = name if config is None else f"{name} ({config})"
        with _quiet_hub_clients():
            try:
                self._dataset = datasets.load_dataset(name, config, revision=revision)
            except Exception as error:  # `datasets` and its HTTP clients raise many types without a common base
                raise DataError(
                    f"data.source {self.where}: no such file or folder here, and the Hugging Face hub did not give it "
                    f"({first_line(error)}). Check the name, data.config and data.revision, and the network; or "
                    f"give a local copy."
                ) from None
        self.splits: tuple[str, ...] = tuple(self._dataset)

    def read(self, split: str) -> list[Table]:
        """Read the rows of one split."""
        rows = self._dataset[split]
        table = rows.with_format("arrow")[:]
        where = f"{self.where}, split {split!r}"
        return [Table(where, dict(zip(table.column_names, table.columns, strict=True)), _class_names(rows.features))]


class Files:
    """Splits that are files on disk; several files of one split are read in the order of their names."""

    def __init__(self, where: str, files: Mapping[str, list[Path]], columns: Sequence[str]) -> None:
        self.where, self._files, self._columns = where, files, columns
        self.splits: tuple[str, ...] = tuple(files)

    def read(self, split: str) -> list[Table]:
        """Read the rows of one split, one table for each file."""
        return [_read_file(path, self._columns) for path in self._files[split]]


def short_repr(value: Any) -> str:
    """The repr of a value, shortened to 60 characters, for a message."""
    text = repr(value)
    return text if len(text) <= LONGEST_REPR else f"{text[: LONGEST_REPR - 3]}..."


def decode_line(line: bytes, where: str) -> str:
    """Decode a line of UTF-8 without its line break. Raises DataError that names `where` if it is not UTF-8."""
    try:
        # utf-8-sig removes the byte order mark that some Windows programs write.
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(f"{where}: byte {byte:#04x} is not UTF-8. Save it as UTF-8.") from None


def _open_folder(folder: Path, columns: Sequence[str]) -> Files:
    """The data files in a folder, or in its subfolder `data` as in a copy of a hub repository; names give the split.

    A file is a whole split (train.csv) or one shard of it (train-00000-of-00002.parquet).
    """
    if not folder.is_dir():
        raise DataError(f"data.source {folder}: no such folder (data.config names a folder in data.source).")
    candidates = {place: files for place in (folder, folder / "data") if (files := _find_splits(place))}
    # The folder above `data` may have other files, such as dataset_infos.json: prefer the one with a train split.
    places = [place for place, files in candidates.items() if "train" in files] or list(candidates)
    if not places:
        raise DataError(
            f"data.source {folder}: no data files in it. Allowed: train, validation and test with one of the endings "
            f"{', '.join(SUFFIXES)}."
        )
    return Files(str(places[0]), candidates[places[0]], columns)


def _find_splits(place: Path) -> dict[str, list[Path]]:
    """Split -> its files. Raises DataError if one split has files of several formats."""
    files_by_split: dict[str, list[Path]] = {}
    for path in sorted(place.glob("[!._]*")):
        if path.is_file() and path.suffix in SUFFIXES:
            split = re.sub(r"-\d+-of-\d+(-[0-9a-f]+)?$", "", path.stem)
            files_by_split.setdefault(split, []).append(path)
    for split, files in files_by_split.items():
        # Files in two formats may be copies of the same rows: reading both would then duplicate every row.
        if len({path.suffix for path in files}) > 1:
            names = " and ".join(path.name for path in files)
            raise DataError(
                f"data.source {place}: split {split!r} has files in several formats, {names}. Keep one format."
            )
    return files_by_split


def _check_suffix(path: Path) -> Path:
    if path.suffix not in SUFFIXES:
        raise DataError(
            f"data.source {path}: cannot read files ending in {path.suffix!r}. Allowed: {', '.join(SUFFIXES)}."
        )
    return path


def _read_file(path: Path, columns: Sequence[str]) -> Table:
    """Read one file in the format that its suffix names. Raises DataError if it cannot be read."""
    read: Callable[[Path, Sequence[str]], Table] = (
        _read_delimited if path.suffix in DELIMITERS else _READERS[path.suffix]
    )
    try:
        return read(path, columns)
    except (OSError, csv.Error, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}). Write the file again.") from None


def _read_delimited(path: Path, columns: Sequence[str]) -> Table:
    """Read a csv file with quotes, or a tsv or txt file without: there a quote is an ordinary character.

    Cells stay bytes: `cells` decodes them, because only there a message can give the row of a byte that is not UTF-8.
    """
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty. Give a file with rows, or remove it.")
    names, lines_to_skip = (list(columns), 0) if columns else _read_header(path)
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate:  # names that are empty may occur several times
        raise DataError(f"{path}: two columns are called {duplicate!r}. Give each column a different name.")
    invalid_rows: list[pa.csv.InvalidRow] = []

    def record_invalid_row(row: pa.csv.InvalidRow) -> str:
        invalid_rows.append(row)
        return "skip"

    has_quotes = path.suffix == ".csv"
    table = pa.csv.read_csv(
        path,
        # With threads, Arrow does not report the numbers of invalid rows. Empty lines are no rows.
        read_options=pa.csv.ReadOptions(use_threads=False, column_names=names, skip_rows=lines_to_skip),
        parse_options=pa.csv.ParseOptions(
            delimiter=DELIMITERS[path.suffix],
            quote_char='"' if has_quotes else False,
            double_quote=has_quotes,
            newlines_in_values=has_quotes,
            invalid_row_handler=record_invalid_row,
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.large_binary()),
            # An empty cell is a missing value; "" in quotes is an empty text; the words null and NA are texts.
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )
    if invalid_rows:
        first = invalid_rows[0]
        remedy = "or data.columns" if columns else "or name the columns with data.columns if there is no header"
        raise DataError(
            f"{path}, row {first.number - lines_to_skip}: {_count_columns(first.actual_columns)} where there should be "
            f"{_count_columns(first.expected_columns)} ({', '.join(names)}; {ROWS_START}). Correct the row, {remedy}."
        )
    return Table(str(path), dict(zip(names, table.columns, strict=True)))


def _read_header(path: Path) -> tuple[list[str], int]:
    """The column names in the first line that is not empty, and the number of lines up to and including it."""
    with path.open("rb") as file:
        count, line = next(((count, line) for count, line in enumerate(file, 1) if line.strip()), (1, b""))
    text = decode_line(line, f"{path}, header")
    if path.suffix == ".csv":
        return next(csv.reader([text]), [""]), count
    return text.split(DELIMITERS[path.suffix]), count


def _read_json(path: Path, columns: Sequence[str]) -> Table:
    """Read a list of objects, or one object in each line; a name that an object does not have is a null.

    The content decides which of the two it is, not the suffix: files called .json often have one object in each line.
    """
    with path.open("rb") as file:
        is_list = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    rows = _iterate_list(path) if is_list else _iterate_lines(path)
    cells: dict[str, list[Any]] = {}
    count = 0
    for count, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(
                f'{path}, row {count}: {short_repr(row)} is not an object such as {{"text": ..., "label": ...}}.'
            )
        for name, value in row.items():
            if name not in cells:
                cells[name] = [None] * (count - 1)
            cells[name].append(value)
        for column in cells.values():
            if len(column) < count:
                column.append(None)
    return Table(str(path), cells)


def _iterate_list(path: Path) -> Iterator[Any]:
    """The elements of the JSON list in a file."""
    data = path.read_bytes()
    try:
        yield from json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: {_describe_byte(error)}") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}). Allowed: a list of objects, or one object a line.") from None


def _iterate_lines(path: Path) -> Iterator[Any]:
    """The JSON value of each line that is not empty."""
    with path.open("rb") as file:
        lines = (line for line in file if line.strip())
        for row, line in enumerate(lines, 1):
            try:
                yield json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, row {row}: {_describe_byte(error)}") from None
            except ValueError as error:
                raise DataError(f"{path}, row {row}: not JSON ({error}). Correct the line.") from None


def _read_parquet(path: Path, columns: Sequence[str]) -> Table:
    table = pa.parquet.read_table(path)
    try:
        features = datasets.Features.from_arrow_schema(table.schema)
    except ValueError:  # `datasets` does not know all Arrow types (a map, for example); then there are no class names
        features = datasets.Features()
    return Table(str(path), dict(zip(table.column_names, table.columns, strict=True)), _class_names(features))


_READERS = {".json": _read_json, ".jsonl": _read_json, ".parquet": _read_parquet}


def _class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Column -> the names of its numbers, for the columns that are a ClassLabel."""
    return {
        name: tuple(feature.names) for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)
    }


def _describe_byte(error: UnicodeDecodeError) -> str:
    return f"byte {error.object[error.start]:#04x} is not UTF-8. Save the file as UTF-8."


def _count_columns(number: int) -> str:
    return f"{number} column" if number == 1 else f"{number} columns"


@contextmanager
def _quiet_hub_clients() -> Iterator[None]:
    """Switch off the progress bars and retry messages of the hub's clients inside the block.

    kdray draws its own screen, and reports a failure in one sentence.
    """
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [(logger, logger.level) for logger in loggers]
    bars_disabled = datasets.are_progress_bars_disabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
        if not bars_disabled:
            datasets.enable_progress_bars()
