"""Reads CoNLL files: a word and its columns in each line, and a blank line behind each sentence.

A row of the table is a sentence, and a cell is the list of what a column has for its words.
"""

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import BinaryIO

import pyarrow as pa

from kdray.errors import DataError
from kdray.sources.arrow_types import decoded_size
from kdray.sources.data_files import DataFile, open_data
from kdray.sources.encodings import SET_ENCODING, as_utf8, describe_bad_byte
from kdray.sources.memory import Budget
from kdray.sources.tables import Table, check_width, short_repr

TOKENS, TAGS = "tokens", "tags"
"""The columns with the words and with their tags. Each column also has a number: "1", "2", ...; "-1" for the last."""
CONLLU_COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
"""The columns of CoNLL-U, https://universaldependencies.org/format.html."""

_DOCUMENT = b"-DOCSTART-"
_COMMENT = re.compile(rb"# (?:id |newdoc\b|newpar\b|\S+ = )")
"""What comments in front of a sentence begin with: `# sent_id = 12`; in MultiCoNER `# id 12`."""
_LONGEST_LINE = 1 << 24
"""Bytes."""
_READ_AT_ONCE = 1 << 20
_WORDS_AT_ONCE = 1 << 16
_FIRST_LINES = 10_000
"""Lines among which the first one with a word is looked for."""
_BYTES_OF_A_SENTENCE = 8

Line = tuple[int, bytes]
"""The number of a line, from 1, and the line without its end."""


def read_conll(
    file: DataFile, budget: Budget, *, columns: Sequence[str], encoding: str | None, is_conllu: bool
) -> Table:
    """Read a CoNLL file, or, if `is_conllu`, a CoNLL-U file, whose lines are comments, words with a number, or neither.

    `columns` are the names of the columns; without them the first one is `tokens` and the last one `tags`; in CoNLL-U
    they are the forms and the universal parts of speech. Raises DataError for a line with another number of columns.
    """
    with open_data(file, budget) as packed:
        stream, found = as_utf8(packed, encoding)
        notes = [f"{file.where}: read as {found}, by its byte order mark."] if found else []
        lines = _lines(stream, file.where)
        first = list(islice(lines, _FIRST_LINES))
        if not first:
            raise DataError(f"{file.where}: the file is empty. Give a file with rows, or remove it.")
        layout = _Layout(file.where, first, tuple(columns), is_conllu)
        sentences = _Sentences(layout.width, budget, file.where)
        for cells in layout.words(chain(first, lines)):
            if cells is None:
                sentences.end()
            else:
                sentences.add(cells)
        names, aliases = layout.names(notes)
        columns_by_name = dict(zip(names, sentences.columns(), strict=True))
        return Table(file.where, columns_by_name, notes=tuple(notes), aliases=aliases)


class _Layout:
    """How many columns the lines have, and which lines are words."""

    def __init__(self, where: str, first: Sequence[Line], columns: tuple[str, ...], is_conllu: bool) -> None:
        self._where, self._columns, self._is_conllu = where, columns, is_conllu
        line = next(self._candidates(first), None)
        if line is None:
            raise DataError(f"{where}: has no words. Give a file with a word in each line, or remove it.")
        self._first_number, text = line
        # A form of CoNLL-U may contain spaces, so only tabs divide its columns.
        self._has_tabs = is_conllu and b"\t" in text
        self.width = len(columns) or len(self._split(self._first_number, text))
        check_width(self.width, where)

    def words(self, lines: Iterable[Line]) -> Iterator[list[str] | None]:
        """The cells of each word; None between two sentences, and perhaps more often."""
        is_start = True
        for number, text in lines:
            if _is_blank(text) or text.split(maxsplit=1)[0] == _DOCUMENT:
                yield None
                is_start = True
            elif not self._is_skipped(number, text, is_start):
                yield self._cells(number, text)
                is_start = False

    def names(self, notes: list[str]) -> tuple[list[str], dict[str, str]]:
        """The names of the columns, and their further names. Adds a note for columns that are chosen by the format."""
        numbers = [str(number + 1) for number in range(self.width)]
        further = {}
        if self._columns:
            names = list(self._columns)
        elif self._is_conllu and self.width == len(CONLLU_COLUMNS):
            names, further = list(CONLLU_COLUMNS), {TOKENS: "form", TAGS: "upos"}
            notes.append(
                f"{self._where}: read as CoNLL-U, so {TOKENS} are its forms (column 2), and {TAGS} its universal parts "
                f"of speech (column 4)."
            )
        else:
            names = [TOKENS, *numbers[1:-1], *([TAGS] if self.width > 1 else [])]
        return names, {**dict(zip(numbers, names, strict=True)), "-1": names[-1], **further}

    def _candidates(self, lines: Sequence[Line]) -> Iterator[Line]:
        """The lines that are probably words: those that begin with # only after all others."""
        words = [line for line in lines if not _is_blank(line[1]) and line[1].split(maxsplit=1)[0] != _DOCUMENT]
        yield from (line for line in words if not line[1].startswith(b"#"))
        yield from (line for line in words if not self._is_conllu and not _COMMENT.match(line[1]))

    def _is_skipped(self, number: int, text: bytes, is_start: bool) -> bool:
        """Whether the line is a comment, or in CoNLL-U several words (1-2), or a word that is not in the text (3.1)."""
        if self._is_conllu:
            return text.startswith(b"#") or re.match(rb"\d+[-.]\d+\s", text) is not None
        # In other files a line may begin with # because that is the word.
        is_comment = is_start and text.startswith(b"# ")
        return is_comment and (_COMMENT.match(text) is not None or len(self._split(number, text)) != self.width)

    def _split(self, number: int, text: bytes) -> list[str]:
        """The columns of a line. Raises DataError for a line that is not UTF-8."""
        try:
            if self._has_tabs:
                return _split_at_tabs(text)
            # Not as text, where no-break spaces would divide columns, too: 10 000 may be one word.
            cells = [cell.decode() for cell in text.split()]
            return cells if len(cells) > 1 else text.decode().split()
        except UnicodeDecodeError as error:
            raise DataError(f"{self._where}, line {number}: {describe_bad_byte(error)}. {SET_ENCODING}") from None

    def _cells(self, number: int, text: bytes) -> list[str]:
        cells = self._split(number, text)
        if len(cells) == self.width:
            return cells
        # A word with spaces in a file with tabs; or white space of another kind between the columns of this line.
        for others in (_split_at_tabs(text) if b"\t" in text else [], text.decode().split()):
            if len(others) == self.width and all(others):
                return others
        raise self._wrong_width(number, cells)

    def _wrong_width(self, number: int, cells: Sequence[str]) -> DataError:
        count = f"{len(cells)} column{'s' if len(cells) > 1 else ''}"
        expected = f"line {self._first_number} has {self.width}"
        if self._columns:
            expected = f"data.columns names {self.width} ({', '.join(self._columns)})"
        if len(cells) == self.width - 1:
            return DataError(
                f"{self._where}, line {number}: {short_repr(cells[0])} has no tag: {count} where {expected}. Add the "
                f"tag behind the word; a sentence ends with a blank line."
            )
        return DataError(
            f"{self._where}, line {number}: {count} where {expected}. White space separates columns; correct the line, "
            f"or name the columns with data.columns."
        )


class _Sentences:
    """The words of all sentences by column; they become Arrow arrays after every 65,536 words, and are then counted."""

    def __init__(self, width: int, budget: Budget, where: str) -> None:
        self._budget, self._where = budget, where
        self._cells: list[list[str]] = [[] for _ in range(width)]
        self._chunks: list[list[pa.Array]] = [[] for _ in range(width)]
        self._starts, self._words = [0], 0

    def add(self, cells: Sequence[str]) -> None:
        """Add a word."""
        for column, cell in zip(self._cells, cells, strict=True):
            column.append(cell)
        self._words += 1
        if len(self._cells[0]) == _WORDS_AT_ONCE:
            self._store()

    def end(self) -> None:
        """End the sentence, if it has words."""
        if self._words > self._starts[-1]:
            self._budget.use(_BYTES_OF_A_SENTENCE * len(self._cells), self._where)
            self._starts.append(self._words)

    def columns(self) -> list[pa.ChunkedArray]:
        """Each column as lists of texts."""
        self.end()
        self._store()
        starts = pa.array(self._starts, pa.int64())
        lists = [pa.LargeListArray.from_arrays(starts, pa.concat_arrays(chunks)) for chunks in self._chunks]
        return [pa.chunked_array([each]) for each in lists]

    def _store(self) -> None:
        for cells, chunks in zip(self._cells, self._chunks, strict=True):
            chunks.append(pa.array(cells, pa.large_string()))
            self._budget.use(decoded_size(chunks[-1]), self._where)
            cells.clear()


def _lines(stream: BinaryIO, where: str) -> Iterator[Line]:
    """The lines, which end as on Unix, on Windows, or on old Macs. Raises DataError for a very long one."""
    number, rest = 0, b""
    while data := stream.read(_READ_AT_ONCE):
        # The last line may continue, or its end may be only the first half of \r\n.
        *lines, rest = (rest + data).splitlines(keepends=True)
        for line in lines:
            number += 1
            yield number, _without_end(line)
        if len(rest) > _LONGEST_LINE:
            raise DataError(
                f"{where}, line {number + 1}: is longer than {_LONGEST_LINE >> 20} MB. Give one word in each line."
            )
    if rest:
        yield number + 1, _without_end(rest)


def _without_end(line: bytes) -> bytes:
    # In a file that was joined from several, a byte order mark may stand anywhere.
    return line.rstrip(b"\r\n").removeprefix(codecs.BOM_UTF8)


def _split_at_tabs(text: bytes) -> list[str]:
    return [cell.strip() for cell in text.decode().split("\t")]


def _is_blank(text: bytes) -> bool:
    """Whether a line has white space only, of any kind."""
    return not text.strip() or (text[0] >= 0x80 and not text.decode(errors="replace").strip())
