"""Files with word vectors: read for the wanted words, refused with file and line where they are damaged or hostile."""

import io
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from kdray.errors import DataError
from kdray.vocabulary.vectors import find_vectors

GLOVE = "the 0.1 0.2 0.3\nfilm -1 2e-1 0.5\n. . . 7 8 9\ngood 1 1 1\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a text file."""

    def write_file(content: str | bytes, name: str = "glove.txt") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


def save_array(folder: Path, array: Any, words: str | list[str], name: str = "vectors") -> Path:
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{name}.npy", array)
    if isinstance(words, str):
        (folder / f"{name}.txt").write_text(words)
    else:
        parquet.write_table(pa.table({"index": words}), folder / "words.parquet")
    return folder


def read(path: Path, *wanted: str) -> dict[str, list[float]]:
    found = find_vectors(str(path)).read(set(wanted))
    assert found.vectors_WxE.dtype == np.float32
    return dict(zip(found.words, found.vectors_WxE.round(6).tolist(), strict=True))


@pytest.mark.parametrize(
    "content",
    [GLOVE, f"4 3\n{GLOVE}", GLOVE.replace("\n", "\r\n"), GLOVE.replace("\n", " \n"), f"{GLOVE}\n\n", GLOVE.rstrip()],
    ids=["GloVe", "word2vec", "CRLF", "fastText", "empty lines", "no last line break"],
)
def test_a_text_file(write: Callable[..., Path], content: str) -> None:
    expected = {"film": pytest.approx([-1, 0.2, 0.5]), "good": [1, 1, 1]}
    assert read(write(content), "film", "good", "bad") == expected
    # A word may contain spaces.
    assert read(write(content), ". . .") == {". . .": [7, 8, 9]}


@pytest.mark.parametrize("words", ["the\nfilm\ngood\n", ["the", "film", "good"]], ids=["text", "parquet"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_array_with_its_words(tmp_path: Path, words: str | list[str], dtype: Any) -> None:
    folder = save_array(tmp_path / "vectors", np.arange(6, dtype=dtype).reshape(3, 2), words)
    assert read(folder, "film") == read(folder / "vectors.npy", "film") == {"film": [2, 3]}


def test_an_array_in_the_order_of_columns(tmp_path: Path) -> None:
    folder = save_array(tmp_path / "vectors", np.asfortranarray(np.arange(6.0).reshape(3, 2)), "the\nfilm\ngood")
    assert read(folder, "film", "good") == {"film": [2, 3], "good": [4, 5]}


def test_a_folder_with_a_text_file(write: Callable[..., Path], tmp_path: Path) -> None:
    write(GLOVE)
    assert read(tmp_path, "good") == {"good": [1, 1, 1]}


def test_the_content_is_identified(write: Callable[..., Path]) -> None:
    key = find_vectors(str(write(GLOVE))).key
    assert key == find_vectors(str(write(GLOVE, "copy.txt"))).key
    assert key != find_vectors(str(write(GLOVE.replace("7", "6")))).key


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("the 1 2 3\nfilm 1 2\n", "line 2: 2 numbers instead of 3"),
        ("the 1 2 3\nfilm 1 2 3 4\n", "line 2: 4 numbers instead of 3"),
        ("the 1 2 3\nfilm 1 nan 3\n", "line 2: a number that is nan"),
        ("the 1 2 3\nfilm 1 -inf 3\n", "line 2: a number that is nan, or too large"),
        ("the 1 2 3\nfilm 1 1e99 3\n", "line 2: a number that is nan, or too large"),
        ("the 1 2 3\nfilm 1 two 3\n", "line 2: could not convert"),
        ("film 1 2 3\nthe 1 2 3\nfilm 1 2 3\n", "line 3: 'film' is doubled: it is in line 1"),
        (b"the 1 2 3\nf\xfflm 1 2 3\n", "line 2: not UTF-8"),
        ("the 1 2 3\nfi\0lm 1 2 3\n", "line 2: a zero byte"),
        ("the 1 2 3\nfilm " + "1 " * 600_000, "line 2: longer than 1,000,000 bytes"),
        ("the\nfilm\n", "line 1: 0 numbers instead of some"),
        ("", r"it has none of the 1 words"),
        ("the 1 2 3\n", r"it has none of the 1 words"),
    ],
)
def test_a_damaged_text_file_is_refused(write: Callable[..., Path], content: str | bytes, reason: str) -> None:
    with pytest.raises(DataError, match=rf"student\.embeddings .*glove\.txt.*{reason}"):
        read(write(content), "film")


class _Attack:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('unpickled')",))


def array_bytes(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


GOOD = array_bytes(np.ones((3, 2), np.float32))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (array_bytes(np.array([[_Attack()] * 2] * 3, object)), "no array of numbers"),
        (pickle.dumps(_Attack()), "no array of numbers"),
        (GOOD[:-4], "no array of numbers"),
        (GOOD.replace(b"(3, 2)", b"(9, 9)"), "no array of numbers"),
        (GOOD.replace(b"(3, 2)", b"open()"), "no array of numbers"),
        (b"", "no array of numbers"),
        (array_bytes(np.ones((3, 2), np.int64)), "has int64 of shape"),
        (array_bytes(np.ones(6)), "has float64 of shape"),
        (array_bytes(np.array([["a", "b"]] * 3)), "has <U1 of shape"),
        (array_bytes(np.ones((4, 2))), r"4 vectors, but .*vectors\.txt has 3 words"),
        (array_bytes(np.array([[1, 2], [np.nan, 1], [1, 2.0]])), "row 2: a number that is nan"),
    ],
)
def test_a_damaged_array_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    save_array(tmp_path / "v", np.ones((3, 2)), "the\nfilm\ngood\n")
    (tmp_path / "v" / "vectors.npy").write_bytes(content)
    with pytest.raises(DataError, match=rf"student\.embeddings .*vectors\.npy.*{reason}"):
        read(tmp_path / "v", "film")


def test_doubled_words_of_an_array_are_refused(tmp_path: Path) -> None:
    folder = save_array(tmp_path / "v", np.ones((3, 2)), "film\nthe\nfilm\n")
    with pytest.raises(DataError, match=r"vectors\.txt, line 3: 'film' is doubled: line 1 has it"):
        read(folder, "film")


def test_an_empty_line_among_the_words_moves_no_word(tmp_path: Path) -> None:
    folder = save_array(tmp_path / "v", np.arange(6.0).reshape(3, 2), "the\n\nfilm\n")
    assert read(folder, "film") == {"film": [4, 5]}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, r"has 0 arrays \(\.npy\) and 0 text files"),
        ({"a.txt": GLOVE, "b.txt": GLOVE}, r"has 0 arrays \(\.npy\) and 2 text files"),
        ({"a.npy": "", "b.npy": ""}, "has 2 arrays"),
        ({"a.npy": ""}, "its words are missing: 0 files"),
        ({"a.npy": "", "b.txt": "", "c.txt": ""}, "its words are missing: 2 files"),
    ],
)
def test_a_folder_without_one_set_of_vectors_is_refused(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"student\.embeddings .*{reason}"):
        find_vectors(str(tmp_path))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file or folder\. Allowed are 'source', 'drawn'"):
        find_vectors(str(tmp_path / "glove.txt"))


def test_vectors_that_nobody_wants_need_no_memory(write: Callable[..., Path]) -> None:
    numbers = " 0.25" * 300
    path = write("".join(f"word{number}{numbers}\n" for number in range(800)))
    tracemalloc.start()
    try:
        assert len(read(path, "word7", "word799")) == 2
        # All of them are 0.96 MB in float32.
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()
