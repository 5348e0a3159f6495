"""Word vectors in a file of GloVe's format, or in a NumPy array with a list of its words.

- text: a line for each word, `film 0.12 -0.3 ...`; a first line with two whole numbers (word2vec, fastText) is skipped
- a folder, or a .npy file, with an array V x E, and beside it the words: a .txt file with one in each line, or a
  .parquet file with one column of texts

Only the vectors of wanted words are read, so those of a large file need little memory; the other lines are checked for
their width alone. Nothing is unpickled. Array names: V words of the file, W wanted ones, E width.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from kdray.errors import DataError, first_line
from kdray.safe_text.escaping import printable
from kdray.sources.opening import read_file
from kdray.sources.reading import Reading
from kdray.sources.tables import short_list, short_repr
from kdray.storage.files import file_fingerprint

SETTING = "student.embeddings"
MOST_BYTES = 1_000_000
"""The longest line that is read: a vector of 10,000 numbers has about 100,000 bytes."""
TEXTS, ARRAY, WORDS = (".txt", ".vec", ".glove"), ".npy", (".txt", ".parquet")
"""The endings of text files in GloVe's format, of arrays, and of the words of an array."""


@dataclass(frozen=True)
class WordVectors:
    """The vectors of the wanted words that a file has."""

    words: tuple[str, ...]
    vectors_WxE: np.ndarray
    """Float32, one row for each of `words`."""

    @property
    def width(self) -> int:
        """The numbers of a vector."""
        return int(self.vectors_WxE.shape[1])


@dataclass(frozen=True)
class VectorFiles:
    """The file or files with vectors, which exist."""

    vectors: Path
    words: Path | None
    """The words of an array; None: `vectors` is text and has them."""

    @property
    def key(self) -> str:
        """A fingerprint of the content."""
        return file_fingerprint(self.vectors, *([self.words] if self.words else []))

    def read(self, wanted: Collection[str]) -> WordVectors:
        """The vectors of these words. Raises DataError, with file and line, for a damaged file and for doubled words.

        Numbers that are not finite, and lines of another width than the first one, are damage, too.
        """
        rows = dict(_rows_of_array(self, wanted) if self.words else _rows_of_text(self.vectors, wanted))
        if not rows:
            raise DataError(
                f"{SETTING} {self.vectors}: it has none of the {len(wanted):,} words of the texts to train on. Give "
                "vectors for the language of the texts."
            )
        return WordVectors(tuple(rows), np.stack([*rows.values()]))


def find_vectors(name: str) -> VectorFiles:
    """The files that the setting `student.embeddings` names. Raises DataError if they are not there."""
    path = Path(name).expanduser().absolute()
    if path.is_dir():
        arrays, texts = (sorted(each for each in path.iterdir() if each.suffix in kinds) for kinds in ((ARRAY,), TEXTS))
        if len(arrays) > 1 or (not arrays and len(texts) != 1):
            _refuse(path, f"has {len(arrays)} arrays ({ARRAY}) and {len(texts)} text files", "Name one of the files.")
        path = arrays[0] if arrays else texts[0]
    if not path.is_file():
        _refuse(path, "no such file or folder", "Allowed are 'source', 'drawn', and a file or folder with vectors.")
    return VectorFiles(path, _words_beside(path) if path.suffix == ARRAY else None)


def _words_beside(array: Path) -> Path:
    """The file with the words of an array: the one with its name, or the only one in its folder."""
    found = sorted(each for each in array.parent.iterdir() if each.suffix in WORDS and each.is_file())
    same_name = [each for each in found if each.stem == array.stem]
    chosen = same_name or found
    if len(chosen) != 1:
        _refuse(
            array,
            f"its words are missing: {len(chosen)} files beside it may have them",
            f"Write the words, one in each line in the order of the vectors, to {array.stem}.txt beside it.",
        )
    return chosen[0]


def _rows_of_text(file: Path, wanted: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """The wanted words with their vectors (E)."""
    width, lines_of = 0, dict[str, int]()
    for number, line in _lines(file):
        fields = line.split(b" ")
        if number == 1 and len(fields) == 2 and all(field.isdigit() for field in fields):
            continue
        width = width or len(fields) - 1
        # The words of some files contain spaces, so the numbers are the last fields.
        if len(fields) - 1 < width or width == 0 or (len(fields) - 1 > width and _is_number(fields[-width - 1])):
            _refuse_line(file, number, f"{len(fields) - 1} numbers instead of {width or 'some'}")
        word = _decoded(file, number, b" ".join(fields[:-width]))
        if word in wanted:
            if word in lines_of:
                _refuse_line(file, number, f"{short_repr(word)} is doubled: it is in line {lines_of[word]:,}, too")
            lines_of[word] = number
            yield word, _parsed(file, number, fields[-width:])


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The number of each line, from 1, and its content; empty lines are left out."""
    with file.open("rb") as opened:
        number = 0
        while line := opened.readline(MOST_BYTES + 1):
            number += 1
            if len(line) > MOST_BYTES:
                _refuse_line(file, number, f"longer than {MOST_BYTES:,} bytes")
            if b"\0" in line:
                _refuse_line(file, number, "a zero byte, so this is no text file")
            if line := line.rstrip(b" \r\n"):
                yield number, line


def _parsed(file: Path, number: int, fields: list[bytes]) -> np.ndarray:
    """The vector of a line (E, float32)."""
    try:
        vector_E = np.array([float(field) for field in fields])
    except ValueError as error:
        _refuse_line(file, number, printable(first_line(error), 100))
    return _checked(vector_E, file, number, "line")


def _checked(vector_E: np.ndarray, file: Path, number: int, line: str) -> np.ndarray:
    """The vector in float32."""
    if not (np.abs(vector_E) <= np.finfo(np.float32).max).all():  # not `>`, which would let nan pass
        _refuse_line(file, number, "a number that is nan, or too large for float32", line)
    return vector_E.astype(np.float32)


def _rows_of_array(files: VectorFiles, wanted: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """The wanted words with their vectors (E)."""
    array_VxE, words = _open_array(files.vectors), _array_words(files)
    if len(words) != len(array_VxE):
        _refuse(
            files.vectors,
            f"{len(array_VxE):,} vectors, but {files.words} has {len(words):,} words",
            "Give the words of these vectors, one in each line.",
        )
    rows_of: dict[str, int] = {}
    for row, word in enumerate(words):
        if word in wanted:
            if word in rows_of:
                _refuse_line(files.words, row + 1, f"{short_repr(word)} is doubled: line {rows_of[word] + 1:,} has it")
            rows_of[word] = row
    for word, row in rows_of.items():
        yield word, _checked(np.array(array_VxE[row]), files.vectors, row + 1, "row")


def _open_array(file: Path) -> np.ndarray:
    """The array V x E, memory-mapped. Objects are refused, because they are pickled."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, MemoryError, RecursionError, OverflowError) as error:
        _refuse(file, f"no array of numbers ({printable(first_line(error), 150)})", "Save it again with numpy.save.")
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.ndim != 2 or array.shape[1] == 0:
        what = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "several arrays"
        _refuse(file, f"has {what}, not vectors", "Save an array of floats with a row for each word (words x width).")
    return array


def _array_words(files: VectorFiles) -> list[Any]:
    """The words of an array, in its order."""
    assert files.words is not None
    if files.words.suffix == ".parquet":
        columns = read_file(files.words, Reading()).columns
        texts = [name for name, cells in columns.items() if isinstance(cells, pa.ChunkedArray) and _is_text(cells.type)]
        if len(texts) != 1:
            _refuse(files.words, f"{len(texts)} columns of texts ({short_list(texts)})", "Give one column of words.")
        column: Any = columns[texts[0]]
        return list(column.to_pylist())
    words: list[Any] = []
    for number, line in _lines(files.words):
        # An empty line would move all words behind it to other vectors.
        words += [None] * (number - 1 - len(words))
        words.append(_decoded(files.words, number, line))
    return words


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _decoded(file: Path, number: int, word: bytes) -> str:
    try:
        return word.decode()
    except UnicodeDecodeError:
        _refuse_line(file, number, "not UTF-8")


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _refuse_line(file: Path | None, number: int, problem: str, line: str = "line") -> NoReturn:
    raise DataError(
        f"{SETTING} {file}, {line} {number:,}: {problem}. A line has a word and the numbers of its vector, with spaces "
        "between them, as in the files of GloVe. Correct it, or download the file again."
    )


def _refuse(path: Path, problem: str, remedy: str) -> NoReturn:
    raise DataError(f"{SETTING} {path}: {problem}. {remedy}")
