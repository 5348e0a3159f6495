"""Reads csv, tsv and txt files: rows with a delimiter between the cells, with or without a header."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.csv

from kdray.errors import DataError
from kdray.sources.data_files import DELIMITERS, DataFile, open_data
from kdray.sources.encodings import SET_ENCODING, as_utf8, describe_bad_byte
from kdray.sources.memory import Budget
from kdray.sources.tables import Table, check_width, plain_table

ROWS_START = "rows are counted from 1, without the header"
LONGEST_ROW = 1 << 24
"""Bytes of one row. A quote that never ends makes one cell of the rest of the file."""
FURTHER = "..."
"""Behind the names of the columns: rows may have further cells."""
_LONGEST_HEADER = 1 << 20
_READ_AT_ONCE = 1 << 20
_OTHER_DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class Delimited:
    """How the user says that a file is written."""

    ending: str
    """The ending of files in this format, such as `.csv`."""
    columns: tuple[str, ...] = ()
    """The names of the columns; none if the first row has them. The last one may be `FURTHER`."""
    delimiter: str | None = None
    """The character between cells; None: as usual for the ending, or recognised."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns that are read; none if the first row has them."""
        return self.columns[:-1] if self.has_further_cells else self.columns

    @property
    def has_further_cells(self) -> bool:
        """Whether rows may have more cells than there are names."""
        return self.columns[-1:] == (FURTHER,)


@dataclass(frozen=True)
class _Layout:
    """How the rows of a file are written."""

    names: tuple[str, ...]
    delimiter: str
    has_quotes: bool


def read_delimited(file: DataFile, budget: Budget, form: Delimited, encoding: str | None) -> Table:
    """Read a csv file with quotes, or a tsv or txt file without: there a quote is an ordinary character.

    Cells stay bytes: `cells` decodes them, because only there a message can give the row of a byte that is not UTF-8.
    Raises DataError for rows with another number of cells.
    """
    with open_data(file, budget) as packed:
        stream, found = as_utf8(packed, encoding)
        notes = [f"{file.where}: read as {found}, by its byte order mark."] if found else []
        start = stream.read(_LONGEST_HEADER)
        line, end = _first_line(start)
        if not line:
            raise DataError(f"{file.where}: the file is empty. Give a file with rows, or remove it.")
        layout = _layout(file, decode_line(line, f"{file.where}, header", SET_ENCODING), form, notes)
        rows = _buffered(_Joined(start if form.columns else start[end:], stream))
        if not form.has_further_cells:
            return _read_rows(rows, file, layout, budget, bool(form.columns), notes)
        cut = _FirstCells(rows, layout, file.where)
        table = _read_rows(_buffered(cut), file, layout, budget, True, notes)
        return replace(table, notes=(*table.notes, *cut.notes()))


def decode_line(line: bytes, where: str, remedy: str = "Give it in UTF-8.") -> str:
    """Decode a line of UTF-8 without its line break. Raises DataError that names `where` if it is not UTF-8."""
    try:
        # utf-8-sig removes the byte order mark that some Windows programs write.
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: {describe_bad_byte(error)}. {remedy}") from None


def _first_line(data: bytes) -> tuple[bytes, int]:
    """The first line that is not empty, without its end, and where the next one begins; no bytes if there is none.

    A line ends as on Unix, on Windows, or on old Macs.
    """
    position = 0
    for line in data.splitlines(keepends=True):
        position += len(line)
        if line.strip():
            return line.rstrip(b"\r\n"), position
    return b"", position


def _layout(file: DataFile, line: str, form: Delimited, notes: list[str]) -> _Layout:
    """The layout by the settings, or recognised from the first line. Adds a note for what is recognised."""
    usual = DELIMITERS[form.ending]
    chosen = form.delimiter or _recognise(line, usual, len(form.names))
    if form.delimiter is None and chosen != usual:
        notes.append(f"{file.where}: its columns are separated by {chosen!r}, so it is read that way (data.delimiter).")
    has_quotes = form.ending == ".csv" or chosen != "\t"
    if has_quotes and form.has_further_cells:
        raise DataError(
            f"{file.where}: data.columns ends with {FURTHER}, which is for files with tabs and without quotes around "
            f"cells. Name every column, or set data.format=tsv if a quote is an ordinary character in this file."
        )
    if form.names:
        return _Layout(form.names, chosen, has_quotes)
    names = next(csv.reader([line], delimiter=chosen), [""]) if has_quotes else line.split(chosen)
    return _Layout(_different_names(names, file.where, notes), chosen, has_quotes)


def _recognise(line: str, usual: str, columns: int) -> str:
    """The delimiter of a file with this first line: the usual one if it occurs, else another one if only that occurs.

    `columns` is the number of columns if it is known. A file with the usual delimiter is read as always.
    """
    found = [other for other in _OTHER_DELIMITERS if other in line]
    if usual in found or len(found) != 1:
        return usual
    # Without a header the first line has texts, in which any character may occur.
    return found[0] if columns in (0, line.count(found[0]) + 1) else usual


def _different_names(names: Sequence[str], where: str, notes: list[str]) -> tuple[str, ...]:
    """The names of the columns, with names for all but the first one without. Raises DataError for a name twice."""
    check_width(len(names), where)
    duplicate = next((name for name, count in Counter(names).items() if name and count > 1), None)
    if duplicate:
        raise DataError(f"{where}: two columns are called {duplicate!r}. Give each column a different name.")
    result = list(names)
    # A table that pandas wrote has a first column without a name: the row numbers.
    for number in [number for number, name in enumerate(names) if not name][1:]:
        result[number] = f"unnamed {number + 1}"
    unnamed = names.count("")
    if unnamed > 1:
        notes.append(f"{where}: {unnamed} columns have no name; each but the first is called by its number.")
    return tuple(result)


def _read_rows(
    rows: BinaryIO, file: DataFile, layout: _Layout, budget: Budget, without_header: bool, notes: Sequence[str]
) -> Table:
    invalid_rows: list[pa.csv.InvalidRow] = []

    def record_invalid_row(row: pa.csv.InvalidRow) -> str:
        invalid_rows.append(row)
        return "error"

    schema = pa.schema([(name, pa.large_binary()) for name in layout.names])
    if not cast(io.BufferedReader, rows).peek(1):  # Arrow refuses a file without rows
        return plain_table(schema, [], file.where, budget, notes)
    try:
        return plain_table(schema, _open(rows, layout, record_invalid_row), file.where, budget, notes)
    except pa.ArrowInvalid as error:
        if invalid_rows:
            raise _invalid_row(invalid_rows[0], file, layout, without_header) from None
        if "straddling" not in str(error):
            raise
        raise _long_row(file.where) from None


def _open(
    rows: BinaryIO, layout: _Layout, on_invalid_row: Callable[[pa.csv.InvalidRow], str]
) -> pa.csv.CSVStreamingReader:
    return pa.csv.open_csv(
        rows,
        # With threads, Arrow does not report the numbers of invalid rows. Empty lines are no rows.
        read_options=pa.csv.ReadOptions(use_threads=False, column_names=list(layout.names), block_size=LONGEST_ROW),
        parse_options=pa.csv.ParseOptions(
            delimiter=layout.delimiter,
            quote_char='"' if layout.has_quotes else False,
            double_quote=layout.has_quotes,
            newlines_in_values=layout.has_quotes,
            invalid_row_handler=on_invalid_row,
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(layout.names, pa.large_binary()),
            # An empty cell is a missing value; "" in quotes is an empty text; the words null and NA are texts.
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )


def _invalid_row(row: pa.csv.InvalidRow, file: DataFile, layout: _Layout, without_header: bool) -> DataError:
    remedy = "or data.columns" if without_header else "or name the columns with data.columns if there is no header"
    return DataError(
        f"{file.where}, row {row.number}: {_count_columns(row.actual_columns)} where there should be "
        f"{_count_columns(row.expected_columns)} ({', '.join(layout.names)}; {ROWS_START}). Correct the row, {remedy}; "
        f"another delimiter than {layout.delimiter!r} is set with data.delimiter."
    )


def _long_row(where: str) -> DataError:
    return DataError(
        f"{where}: a row is longer than {LONGEST_ROW >> 20} MB; perhaps a quote in it has no second quote. "
        f"Correct the row."
    )


def _count_columns(number: int) -> str:
    return f"{number} column" if number == 1 else f"{number} columns"


def _buffered(stream: io.RawIOBase) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(stream, _READ_AT_ONCE))


class _FirstCells(io.RawIOBase):
    """A stream whose lines have the first cells only, as many as there are columns."""

    def __init__(self, stream: BinaryIO, layout: _Layout, where: str) -> None:
        self._stream, self._where = stream, where
        self._delimiter, self._cells = layout.delimiter.encode(), len(layout.names)
        self._rest, self._ready = b"", b""
        self._longer_lines = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and (data := self._stream.read(_READ_AT_ONCE)):
            # The last line may continue, or its end may be only the first half of \r\n.
            *lines, self._rest = (self._rest + data).splitlines(keepends=True)
            self._ready = b"".join(map(self._cut, lines))
            if len(self._rest) > LONGEST_ROW:
                raise _long_row(self._where)
        if not self._ready:
            self._ready, self._rest = self._cut(self._rest), b""
        data = self._ready[: len(buffer)]
        self._ready = self._ready[len(data) :]
        buffer[: len(data)] = data
        return len(data)

    def notes(self) -> list[str]:
        """A sentence with the number of longer lines, if there were any."""
        if not self._longer_lines:
            return []
        rows = "1 row has" if self._longer_lines == 1 else f"{self._longer_lines} rows have"
        return [f"{self._where}: {rows} more than {_count_columns(self._cells)}; the further cells are left out."]

    def _cut(self, line: bytes) -> bytes:
        cells = line.split(self._delimiter, self._cells)
        if len(cells) <= self._cells:
            return line
        self._longer_lines += 1
        return self._delimiter.join(cells[:-1]) + b"\n"


class _Joined(io.RawIOBase):
    """A stream that continues after bytes which were already read from it."""

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        self._start, self._stream = start, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._start[: len(buffer)] or self._stream.read(len(buffer))
        self._start = self._start[len(data) :]
        buffer[: len(data)] = data
        return len(data)
