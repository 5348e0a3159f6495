"""Reads plain text: a line, a paragraph or a whole file is a row, with one column, `text`.

Line ends may be those of Unix, Windows or old Macs; in the rows they are those of Unix. Rows of white space alone are
left out, because blank lines only divide a text.
"""

import codecs
import io
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import BinaryIO, Literal, TypeAlias, get_args

import pyarrow as pa
import pyarrow.compute as pc

from kdray.errors import DataError
from kdray.sources.arrow_types import decoded_size
from kdray.sources.data_files import DataFile, open_data
from kdray.sources.encodings import SET_ENCODING, UTF8, as_utf8, describe_bad_byte, likely_encoding, wrong_encoding
from kdray.sources.memory import Budget
from kdray.sources.tables import Table

Unit: TypeAlias = Literal["lines", "paragraphs", "documents"]
"""What becomes a row: a line; lines up to a blank one; the whole file, or each document in it."""
UNITS: tuple[str, ...] = get_args(Unit)
TEXT = "text"

_READ_AT_ONCE = 1 << 20
"""Characters."""
_STORED_AT_ONCE = 1 << 20
"""Bytes of texts that become one Arrow array."""
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
"""Bytes that text in no encoding of one byte a character has."""
_NEAR = 1000
"""Bytes beside a wrong one that are looked at."""
_MARK = codecs.BOM_UTF8.decode()


@dataclass(frozen=True)
class PlainText:
    """How a file of plain text is divided into rows."""

    unit: str
    """One of `UNITS`."""
    document_start: str | None = None
    """A pattern (RE2) that the first line of each document matches; None: the file is one document."""


def check_pattern(pattern: str) -> str:
    """Return a pattern of RE2, whose time grows with the text only. Raises ValueError for another pattern."""
    try:
        pc.match_substring_regex(pa.array([""]), pattern)
    except pa.ArrowInvalid as error:
        raise ValueError(f"got {pattern!r}, which is no regular expression of RE2 ({error}).") from None
    return pattern


def read_plain_text(file: DataFile, budget: Budget, form: PlainText, encoding: str | None) -> Table:
    """Read a file of plain text, a piece at a time.

    Raises DataError, with the line, for a binary file and for bytes that are not in the encoding; also for a file
    without text.
    """
    texts, found = _Texts(budget, file.where), None
    try:
        with open_data(file, budget) as packed:
            stream, found = as_utf8(packed, encoding)
            chunks = _chunks(stream, file.where)
            if form.unit == "documents" and form.document_start is None:
                _add_whole(chunks, texts)
            else:
                _add_parts(_lines_of(chunks), form, texts)
    except UnicodeError:
        raise _undecodable(file, encoding or found or UTF8) from None
    column = texts.column()
    if not len(column):
        problem = "has nothing but white space" if texts.has_parts else "the file is empty"
        raise DataError(f"{file.where}: {problem}. Give a file with text, or remove it.")
    notes = (f"{file.where}: read as {found}, by its byte order mark.",) if found else ()
    return Table(file.where, {TEXT: column}, notes=notes)


def _add_whole(chunks: Iterable[str], texts: "_Texts") -> None:
    for chunk in chunks:
        texts.add(chunk)
    texts.end()


def _add_parts(blocks: Iterable[list[str]], form: PlainText, texts: "_Texts") -> None:
    """Add the lines of a file to the texts, and end a text where the form says so."""
    for lines in blocks:
        for line, is_start in zip(lines, _starts(lines, form), strict=True):
            if is_start:
                texts.end()
            texts.add_line(line)
    texts.end()


def _starts(lines: list[str], form: PlainText) -> list[bool]:
    """Whether each line begins a text."""
    if form.unit == "lines":
        return [True] * len(lines)
    if form.unit == "paragraphs":
        return [_is_blank(line) for line in lines]
    starts: list[bool] = pc.match_substring_regex(pa.array(lines, pa.large_string()), form.document_start).to_pylist()
    return starts


def _chunks(stream: BinaryIO, where: str) -> Iterator[str]:
    """The characters of a stream in UTF-8. Raises DataError for a zero, which no text has."""
    text = io.TextIOWrapper(stream, UTF8)  # all line ends become \n
    line = 1
    while chunk := text.read(_READ_AT_ONCE):
        place = chunk.find("\0")
        if place >= 0:
            # Two bytes a character: where the zero stands says which of the two comes first.
            near = chunk[place - place % 2 :][:_NEAR].encode()
            raise _binary(where, line + chunk.count("\n", 0, place), 0, near)
        line += chunk.count("\n")
        yield chunk


def _lines_of(chunks: Iterable[str]) -> Iterator[list[str]]:
    """The lines without their ends, as many at once as are in memory."""
    # A line may be as long as the file: its pieces are joined once.
    pieces: list[str] = []
    for chunk in chunks:
        # Not splitlines: it divides at form feeds and at other signs, too.
        first, *others = chunk.split("\n")
        pieces.append(first)
        if others:
            yield _without_marks(["".join(pieces), *others[:-1]])
            pieces = [others[-1]]
    if any(pieces):
        yield _without_marks(["".join(pieces)])


def _without_marks(lines: list[str]) -> list[str]:
    # In a file that was joined from several, a byte order mark may stand at the start of any line.
    return [line.removeprefix(_MARK) for line in lines]


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


class _Texts:
    """The texts of a file; they become Arrow arrays after every megabyte.

    The budget is only checked until all are there: what opens the file checks how much of it was read, too.
    """

    def __init__(self, budget: Budget, where: str) -> None:
        self._budget, self._where = budget, where
        self._data, self._ends = bytearray(), [0]
        self._stored: list[pa.Array] = []
        self._size = 0
        self._has_text = False
        self.has_parts = False
        """Whether anything was added, blank or not."""

    def add(self, part: str) -> None:
        """Add a part of the text."""
        self.has_parts = True
        self._has_text = self._has_text or not _is_blank(part)
        self._data += part.encode()
        self._budget.check(self._size + len(self._data), self._where)

    def add_line(self, line: str) -> None:
        """Add a line of the text. Blank lines before the first other one are left out."""
        self.has_parts = True
        if self._has_text:
            self._data += b"\n"
        elif _is_blank(line):
            return
        self.add(line)

    def end(self) -> None:
        """End the text; a blank one is left out."""
        if self._has_text:
            self._ends.append(len(self._data))
        else:
            del self._data[self._ends[-1] :]
        self._has_text = False
        if len(self._data) >= _STORED_AT_ONCE:
            self._store()

    def column(self) -> pa.ChunkedArray:
        """All texts."""
        self._store()
        self._budget.use(self._size, self._where)
        return pa.chunked_array(self._stored, pa.large_string())

    def _store(self) -> None:
        ends = pa.array(self._ends, pa.int64()).buffers()[1]
        # The array takes the bytes over: no text is in memory twice.
        array = pa.Array.from_buffers(
            pa.large_string(), len(self._ends) - 1, [None, ends, pa.py_buffer(self._data)], null_count=0
        )
        self._stored.append(array)
        self._size += decoded_size(array)
        self._data, self._ends = bytearray(), [0]


def _undecodable(file: DataFile, encoding: str) -> DataError:
    """The error for a file that is not in this encoding, with the line; the file is read again up to there."""
    line, error = _first_error(file, encoding)
    if not isinstance(error, UnicodeDecodeError):
        return wrong_encoding(f"{file.where}, line {line}", error)
    if _CONTROL.search(error.object[max(0, error.start - _NEAR) : error.start + _NEAR]):
        near = error.object[error.start - error.start % 2 :][:_NEAR]
        return _binary(file.where, line, error.object[error.start], near)
    if encoding != UTF8:
        return wrong_encoding(f"{file.where}, line {line}", error)
    return DataError(f"{file.where}, line {line}: {describe_bad_byte(error)}. {SET_ENCODING}")


def _first_error(file: DataFile, encoding: str) -> tuple[int, UnicodeError]:
    """The line with the first bytes that are not in this encoding, and the error for them."""
    line = 1
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    with open_data(file, Budget(math.inf)) as stream:
        # The empty piece behind the last one ends the text, perhaps inside a character.
        for data in chain(iter(lambda: stream.read(_READ_AT_ONCE), b""), [b""]):
            before = decoder.getstate()
            try:
                line += decoder.decode(data, final=not data).count("\n")
            except UnicodeError as error:
                decoder.setstate(before)
                return line + _lines_before_error(decoder, data), error
    raise DataError(f"{file.where}: has changed while it was read. Start again.")


def _lines_before_error(decoder: io.IncrementalNewlineDecoder, data: bytes) -> int:
    """The number of line ends before the first wrong byte: what stands in front of it is decoded, byte by byte."""
    lines = 0
    with suppress(UnicodeError):
        for place in range(len(data)):
            lines += decoder.decode(data[place : place + 1]).count("\n")
    return lines


def _binary(where: str, line: int, byte: int, near: bytes) -> DataError:
    """The error for a byte that no text has in the encoding that the file is read in; `near` begins at it."""
    problem = f"{where}, line {line}: byte {byte:#04x} is no part of a text"
    if near.count(0) > len(near) // 4:
        return DataError(f"{problem} in UTF-8; perhaps this is {likely_encoding(near)}. {SET_ENCODING}")
    return DataError(f"{problem}, so this is a binary file. Give files of plain text.")
