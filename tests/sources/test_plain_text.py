"""Plain text: what becomes a row, in which files, and what is refused, with file and line."""

import bz2
import gzip
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kdray.data.splits import Data, load_splits
from kdray.errors import DataError, SpecError
from kdray.sources.opening import read_file
from kdray.sources.reading import Reading
from kdray.tasks.causal_lm import CausalLM

PROSE = b" \r\nOne\x0cline ,\rstill one\r\n\t\r\n\r\n\xef\xbb\xbftwo d\xc3\xa9\n"
"""Lines that end as in Windows and on old Macs, a form feed, and a byte order mark where two files were joined."""
WIKI = b" \n = A = \n \n x\n\n = = B = = \n y \n = C = \nz"


def texts(content: bytes, folder: Path, name: str = "text.raw", **settings: Any) -> list[str]:
    path = folder / name
    path.write_bytes(content)
    table = read_file(path, Reading(**settings))
    assert table.names == ["text"]
    column: list[str] = table.columns["text"].to_pylist()  # type: ignore[union-attr]
    return column


def refusal(content: bytes, folder: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        texts(content, folder, **settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("unit", "rows"),
    [
        ("lines", ["One\x0cline ,", "still one", "two dé"]),
        ("paragraphs", ["One\x0cline ,\nstill one", "two dé"]),
        ("documents", [" \nOne\x0cline ,\nstill one\n\t\n\n\ufefftwo dé\n"]),
    ],
)
def test_a_line_a_paragraph_or_a_file_is_a_row(tmp_path: Path, unit: str, rows: list[str]) -> None:
    assert texts(PROSE, tmp_path, format=unit) == rows


def test_a_pattern_divides_a_file_into_documents(tmp_path: Path) -> None:
    found = texts(WIKI, tmp_path, format="documents", document_start="^ = [^=].* = $")
    assert found == [" = A = \n \n x\n\n = = B = = \n y ", " = C = \nz"]


def zst(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".zst", zst)])
def test_compressed_text(tmp_path: Path, ending: str, pack: Any) -> None:
    assert texts(pack(b"a\n\nb\n"), tmp_path, f"wiki.tokens{ending}", format="lines") == ["a", "b"]


def test_an_archive_with_files_of_any_ending(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "wiki.zip", "w") as archive:
        archive.writestr("__MACOSX/._wiki.train.tokens", "x")
        archive.writestr("wiki/wiki.train.tokens", "a\nb\n")
    assert read_file(tmp_path / "wiki.zip", Reading(format="lines")).columns["text"].to_pylist() == ["a", "b"]  # type: ignore[union-attr]
    with pytest.raises(DataError, match="holds no files to read"):
        read_file(tmp_path / "wiki.zip", Reading())


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "utf-16-be"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    settings = {} if encoding == "utf-16" else {"encoding": encoding}
    assert texts("naïve\r\nzwölf".encode(encoding), tmp_path, format="lines", **settings) == ["naïve", "zwölf"]


@pytest.mark.parametrize(
    ("content", "settings", "expected"),
    [
        (b"", {}, "the file is empty"),
        (b" \n\t\n", {}, "has nothing but white space"),
        (b" \n\t\n", {"format": "documents"}, "has nothing but white space"),
        (b"ok\r\nna\xefve\n", {}, "line 2: byte 0xef is not UTF-8, perhaps windows-1252"),
        (b"ok\rna\xefve\n", {"format": "documents"}, "line 2: byte 0xef is not UTF-8"),
        (b"ok\nd\xc3", {}, "line 2: byte 0xc3 is not UTF-8"),
        (b"a\n" * 600_000 + b"\xff", {}, "line 600001: byte 0xff is not UTF-8"),
        (b"a\n\x89PNG\r\n\x1a\n\0\0\0\rIHDR", {}, "line 2: byte 0x89 is no part of a text, so this is a binary file"),
        (b"\x7fELF text\n" + b"text " * 100 + b"\0", {}, "line 2: byte 0x00 is no part of a text"),
        (b"GIF\n" + b"text " * 100 + b"\0more text", {"encoding": "latin-1"}, "line 2: byte 0x00 is no part of a text"),
        (
            "ab\ncd".encode("utf-16-le"),
            {},
            "line 1: byte 0x00 is no part of a text in UTF-8; perhaps this is utf-16-le",
        ),
        (b"ok\nok\nna\xefve", {"encoding": "ascii"}, "line 3: is not in ascii"),
        (gzip.compress(b"a\n", mtime=0), {}, "the file is compressed. Name it text.raw.gz"),
        (b"many words\n" * 200, {"max_gb": 1e-6}, "need more than 1e-06 GB of memory"),
        # Few bytes, and for each of them the place of a row.
        (b"a\n" * 3000, {"max_gb": 1e-5}, "need more than 1e-05 GB of memory"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, settings: dict[str, Any], expected: str) -> None:
    message = refusal(content, tmp_path, **{"format": "lines", **settings})
    assert expected in message
    assert message.startswith(f"{tmp_path / 'text.raw'}")


def test_the_limit_counts_the_texts_once(tmp_path: Path) -> None:
    line = b"x" * 99_999 + b"\n"
    assert len(texts(line * 80, tmp_path, format="lines", max_gb=0.0085)) == 80


def test_a_line_may_be_as_long_as_the_file(tmp_path: Path) -> None:
    (found,) = texts(b"word " * 500_000, tmp_path, format="lines")
    assert len(found) == 2_500_000


def test_the_memory_is_that_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "text.raw").write_bytes(b"many different words\n" * 1_000_000)
    table = read_file(tmp_path / "text.raw", Reading(format="lines"))
    column = table.columns["text"]
    assert isinstance(column, pa.ChunkedArray)
    assert column.num_chunks > 10  # no array of all rows is made beside its parts
    assert column.nbytes < 1.5 * (tmp_path / "text.raw").stat().st_size
    column.validate(full=True)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"format": "lines", "document_start": "x"}, "document_start: is for files with documents"),
        ({"document_start": "x"}, "document_start: is for files with documents"),
        ({"format": "documents", "document_start": "("}, "is no regular expression of RE2"),
        ({"format": "lines", "columns": "text"}, "columns: plain text (format=lines) has one column"),
        ({"format": "documents", "delimiter": "tab"}, "delimiter: plain text"),
        ({"format": "words"}, "or 'documents'"),
    ],
)
def test_settings_that_plain_text_does_not_have(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        Data(source="x", **settings)
    assert expected in str(caught.value)


def test_splits_are_files_a_pattern_or_folders(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("valid", 2), ("test", 2)):
        (tmp_path / f"{split}.txt").write_text("".join(f"{split} {n}\n\n" for n in range(count)))
        (tmp_path / "books" / split).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "books" / split / f"{number}.txt").write_text(f"{split}\n\nbook {number}\n")
        (tmp_path / f"wiki.{split}.raw").write_text("".join(f"{split} {n}\n" for n in range(count)))
    raw = {"train": "wiki.train.raw", "validation": "wiki.valid.raw", "test": "wiki.t*t.raw"}
    for settings in ({"format": "paragraphs"}, {"format": "lines", **raw}):
        splits = load_splits(Data(source=str(tmp_path), **settings), CausalLM())  # type: ignore[arg-type]
        assert splits.train["text"][:] == [f"train {n}" for n in range(6)]
        assert splits.validation["text"][:] == ["valid 0", "valid 1"]
        assert splits.notes == ()
    books = load_splits(Data(source=str(tmp_path / "books"), format="documents"), CausalLM())
    assert books.test["text"][:] == ["test\n\nbook 0\n", "test\n\nbook 1\n"]


@pytest.mark.parametrize("content", ["Some text\nwithout tabs\n", "Once, there\nwas, a, king\n"])
def test_a_txt_file_that_is_read_as_columns_names_the_formats_of_plain_text(tmp_path: Path, content: str) -> None:
    (tmp_path / "train.txt").write_text(content)
    with pytest.raises(DataError, match=r"plain text is read with data\.format=lines, paragraphs or documents"):
        load_splits(Data(source=str(tmp_path)), CausalLM())


def test_nothing_in_a_text_is_run(tmp_path: Path) -> None:
    hostile = b"{{ 1/0 }} __import__('os') $(touch x) %n\n!!python/object/apply:os.system [x]\n"
    assert texts(hostile, tmp_path, format="lines") == hostile.decode().splitlines()
