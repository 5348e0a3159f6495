"""Raw tables from files, a folder, the Hugging Face hub or a generator.

This module opens a source and reads its splits without a check of single cells: `folders` finds the files,
`plain_text`, `delimited`, `json_files`, `columnar` and `conll` read one file, `cells` checks texts and labels, `splits`
puts the splits together.
"""

import csv
import glob
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol, get_args

import datasets

from kdray.errors import DataError, first_line
from kdray.sources.arrow_types import check_schema
from kdray.sources.columnar import read_arrow, read_parquet
from kdray.sources.conll import read_conll
from kdray.sources.data_files import (
    CONLL_ENDINGS,
    CONLLU_ENDING,
    DELIMITERS,
    JSON_ENDINGS,
    READ_ERRORS,
    READABLE,
    DataFile,
    data_files_at,
    unreadable,
)
from kdray.sources.delimited import Delimited, read_delimited
from kdray.sources.encodings import wrong_encoding
from kdray.sources.folders import LocalSplits, files_of_pattern, find_splits, is_pattern, splits_of_files
from kdray.sources.generated.drawing import UNLABELLED, GeneratedRows
from kdray.sources.generated.drawing import Split as GeneratedSplit
from kdray.sources.json_files import read_json
from kdray.sources.memory import Budget
from kdray.sources.plain_text import UNITS, PlainText, read_plain_text
from kdray.sources.reading import Reading
from kdray.sources.tables import Table, plain_table

PLAIN_TEXT_HINT = "A .txt file is read as columns; plain text is read with data.format=lines, paragraphs or documents. "
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class Source(Protocol):
    """Data that consist of named splits."""

    where: str
    splits: tuple[str, ...]

    def parts(self, split: str) -> frozenset[str]:
        """What a split consists of, such as its files; empty if the source has no such split."""
        ...

    def read(self, split: str) -> list[Table]:
        """Read the tables of one split. Raises DataError if they cannot be read."""
        ...


def open_source(
    source: str | GeneratedRows, reading: Reading, config: str | None = None, revision: str | None = None
) -> Source:
    """Open a generator, a file, a folder, a pattern of file names, or a dataset on the hub.

    A name that could be both a local path and a hub dataset is the local path. Raises DataError if there is no such
    source. A hub dataset is downloaded here, unless it is in the cache of `datasets`.
    """
    if isinstance(source, GeneratedRows):
        return Generated(source)
    path = Path(source).expanduser()
    if path.is_file():
        return Files(splits_of_files(_files_at(path, reading), str(path)), None, reading)
    if path.is_dir():
        folder = path / config if config else path
        if not folder.is_dir():
            raise DataError(f"data.source {folder}: no such folder (data.config names a folder in data.source).")
        return Files(find_splits(folder), folder, reading)
    if glob.has_magic(source):
        return Files(splits_of_files(_files_of(source, reading), source), None, reading)
    if is_pattern(path.name) or source.startswith((".", "/", "~")) or not HUB_NAME.fullmatch(source):
        raise DataError(
            f"data.source {source}: no such file or folder. Give a folder with train, validation and test files, "
            f"one file ({READABLE}), or a Hugging Face dataset name such as stanfordnlp/sst2."
        )
    return Hub(source, config, revision, reading)


class Generated:
    """The splits of a generator."""

    def __init__(self, generator: GeneratedRows) -> None:
        self.where, self._generator = f"generated {generator.kind}", generator
        more = (UNLABELLED,) if generator.unlabelled_rows else ()
        self.splits: tuple[str, ...] = (*get_args(GeneratedSplit), *more)

    def parts(self, split: str) -> frozenset[str]:
        """The split itself."""
        return frozenset({split} & set(self.splits))

    def read(self, split: str) -> list[Table]:
        """Generate the rows of one split."""
        generator = self._generator
        columns = generator.unlabelled() if split == UNLABELLED else generator.rows(split)  # type: ignore[arg-type]
        return [Table(f"{self.where}, split {split!r}", columns)]


class Hub:
    """The splits of a dataset that Hugging Face `datasets` loads."""

    def __init__(self, name: str, config: str | None, revision: str | None, reading: Reading) -> None:
        self.where = name if config is None else f"{name} ({config})"
        self._budget = Budget(reading.max_gb)
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

    def parts(self, split: str) -> frozenset[str]:
        """The split itself."""
        return frozenset({split} & set(self.splits))

    def read(self, split: str) -> list[Table]:
        """Read the rows of one split."""
        rows = self._dataset[split]
        where = f"{self.where}, split {split!r}"
        check_schema(rows.data.schema, where)
        self._budget.check(rows.data.nbytes, where)
        table = rows.with_format("arrow")[:]
        # The features of a dataset are not always in the metadata of its table.
        schema = table.schema.with_metadata(rows.features.arrow_schema.metadata)
        return [plain_table(schema, table.to_batches(), where, self._budget)]


class Files:
    """Splits that are files on disk; several files of one split are read in the order of their names."""

    def __init__(self, splits: LocalSplits, folder: Path | None, reading: Reading) -> None:
        """The splits that were found; further ones are named by patterns, which are relative to `folder`."""
        self.where, self._splits, self._folder, self._reading = splits.where, splits, folder, reading
        self.splits: tuple[str, ...] = tuple(splits.files)
        self._budget = Budget(reading.max_gb)

    def parts(self, split: str) -> frozenset[str]:
        """The files of a split, or of a pattern of file names."""
        return frozenset(f"{file.path.absolute()} {file.member or ''}" for file in self._files(split))

    def read(self, split: str) -> list[Table]:
        """Read the rows of one split, one table for each file."""
        tables = [_read_file(file, self._reading, self._budget) for file in self._files(split)]
        notes = self._splits.notes.get(split, ())
        return [replace(tables[0], notes=(*notes, *tables[0].notes)), *tables[1:]]

    def _files(self, split: str) -> tuple[DataFile, ...]:
        if split in self._splits.files:
            return self._splits.files[split]
        any_ending = self._reading.format is not None
        return files_of_pattern(split, self._folder, any_ending) if any_ending or is_pattern(split) else ()


def read_file(path: Path, reading: Reading) -> Table:
    """Read one file, such as one to predict. Raises DataError if it cannot be read, or is an archive of several."""
    files = _files_at(path, reading)
    if len(files) > 1:
        raise DataError(f"data.source {path}: holds {len(files)} files. Unpack it, and give one of them.")
    return _read_file(files[0], reading, Budget(reading.max_gb))


def _files_at(path: Path, reading: Reading) -> list[DataFile]:
    files = data_files_at(path, any_ending=reading.format is not None)
    if not files:
        holds = (
            "holds no files to read"
            if path.suffix.lower() == ".zip"
            else f"cannot read files ending in {path.suffix!r}"
        )
        raise DataError(
            f"data.source {path}: {holds}. Allowed: {READABLE}; any ending, with data.format=conll, lines or another "
            "format."
        )
    return files


def _files_of(pattern: str, reading: Reading) -> list[DataFile]:
    files = list(files_of_pattern(pattern, None, any_ending=reading.format is not None))
    if not files:
        raise DataError(f"data.source {pattern}: no file has such a name. Allowed endings: {READABLE}.")
    return files


def _read_file(file: DataFile, reading: Reading, budget: Budget) -> Table:
    """Read one file in the format that a setting or its ending names. Raises DataError if it cannot be read."""
    try:
        if reading.format in UNITS:
            form = PlainText(reading.format, reading.document_start)
            return read_plain_text(file, budget, form, reading.encoding)
        ending = file.ending if reading.format is None else f".{reading.format}"
        if ending in CONLL_ENDINGS:
            is_conllu = ending == CONLLU_ENDING
            return read_conll(file, budget, columns=reading.columns, encoding=reading.encoding, is_conllu=is_conllu)
        if ending in DELIMITERS:
            columns = Delimited(ending, reading.columns, reading.delimiter)
            return _read_delimited(file, budget, columns, reading)
        if ending in JSON_ENDINGS:
            return read_json(file, budget, field=reading.field, encoding=reading.encoding)
        return read_parquet(file, budget) if ending == ".parquet" else read_arrow(file, budget)
    except DataError:
        raise
    except UnicodeError as error:
        raise wrong_encoding(file.where, error) from None
    except MemoryError:
        raise DataError(
            f"{file.where}: its rows do not fit into the memory of this machine. Give fewer rows."
        ) from None
    except (*READ_ERRORS, csv.Error, ValueError) as error:
        raise unreadable(file.where, error) from None


def _read_delimited(file: DataFile, budget: Budget, columns: Delimited, reading: Reading) -> Table:
    """Read rows with cells. If only the ending .txt says that there are cells, messages say how to read plain text."""
    if reading.format is not None or columns.ending != ".txt":
        return read_delimited(file, budget, columns, reading.encoding)
    try:
        return replace(read_delimited(file, budget, columns, reading.encoding), hint=PLAIN_TEXT_HINT)
    except DataError as error:
        raise DataError(f"{error} {PLAIN_TEXT_HINT.strip()}") from None


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
