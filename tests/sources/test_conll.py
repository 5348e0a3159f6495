"""CoNLL files as people have them: sentences as lists of words and of their columns, and what is refused."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from kdray.data.list_cells import word_column
from kdray.errors import DataError, SpecError
from kdray.sources.opening import open_source, read_file
from kdray.sources.reading import Reading
from kdray.sources.tables import Table

Sentences = list[list[str]]
TWO = "EU\tB-org\nrejects\tO\n\nBerlin\tB-loc\n"
WORDS = [["EU", "rejects"], ["Berlin"]]
TAGS = [["B-org", "O"], ["B-loc"]]


def read(folder: Path, content: str | bytes, name: str = "x.conll", **settings: Any) -> Table:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_file(folder / name, Reading(**settings))


def lists(table: Table, name: str) -> Sentences:
    column = word_column(table, name, "task.text")
    values = column.values.to_pylist()
    return [values[start:end] for start, end in zip(column.starts[:-1], column.starts[1:], strict=True)]


@pytest.mark.parametrize(
    "content",
    [
        TWO,
        TWO.replace("\t", " "),
        TWO.replace("\t", " \t  ").replace("Berlin", "  Berlin"),
        TWO.replace("\t", "\u3000"),
        TWO.replace("\n", "\r\n"),
        TWO.replace("\n", "\r"),
        TWO.rstrip("\n"),
        f"\n\n{TWO}\n\n \n\t\n",
        TWO.replace("\n\n", "\n\t\n\xa0\n\n"),
        f"\ufeff{TWO}\ufeff\n",
        TWO.replace("Berlin", "\ufeffBerlin"),
        f"-DOCSTART- -X- O O\n\n{TWO}",
        "-DOCSTART-\n" + TWO.replace("Berlin", "-DOCSTART-\tO\n\nBerlin"),
        f"# sent_id = 1\n# text = EU rejects\n{TWO}",
        "# id 5b1-3 domain=train\n" + TWO.replace("Berlin", "# id 7\nBerlin"),
        f"# a comment of several words\n{TWO}",
    ],
)
@pytest.mark.parametrize("ending", [".conll", ".BIO", ".iob", ".iob2", ".conll.gz"])
def test_every_way_of_writing_gives_the_same_sentences(tmp_path: Path, content: str, ending: str) -> None:
    data = content.encode()
    table = read(tmp_path, gzip.compress(data) if ending.endswith(".gz") else data, f"x{ending}")
    assert lists(table, "tokens") == lists(table, "1") == WORDS
    assert lists(table, "tags") == lists(table, "2") == lists(table, "-1") == TAGS
    assert table.notes == ()


def test_the_first_column_has_the_words_and_the_last_the_tags(tmp_path: Path) -> None:
    content = "EU NNP B-NP B-org\nrejects VBZ B-VP O\n"
    table = read(tmp_path, content)
    assert lists(table, "tags") == lists(table, "4") == [["B-org", "O"]]
    assert lists(table, "2") == [["NNP", "VBZ"]]
    assert table.names == ["tokens", "2", "3", "tags"]
    named = read(tmp_path, content, columns=("word", "pos", "chunk", "ner"))
    assert lists(named, "ner") == lists(named, "-1") == [["B-org", "O"]]
    with pytest.raises(DataError, match=r"no column 'tokens' \(task.text\)"):
        word_column(named, "tokens", "task.text")
    words = read(tmp_path, "EU\nrejects\n\nBerlin\n")
    assert lists(words, "tokens") == WORDS
    assert "tags" not in words.names


def test_a_number_sign_may_be_a_word(tmp_path: Path) -> None:
    table = read(tmp_path, "# O\n1 O\n\nthe O\n# O\n\n#NFL B-x\n#\tO\n# O\n")
    assert lists(table, "tokens") == [["#", "1"], ["the", "#"], ["#NFL", "#", "#"]]


def test_a_comment_may_have_as_many_columns_as_a_word(tmp_path: Path) -> None:
    table = read(tmp_path, "# id 5b1-3 domain=en\nEU _ _ B-org\n\n# id 5b1-4 domain=en\nBerlin _ _ B-loc\n")
    assert lists(table, "tokens") == [["EU"], ["Berlin"]]


def test_words_with_spaces_and_no_break_spaces(tmp_path: Path) -> None:
    table = read(tmp_path, "a\tO\nNew York\tB-loc\n10\xa0000\tO\n10 000\tO\nb\u2028c\tO\n")
    assert lists(table, "tokens") == [["a", "New York", "10\xa0000", "10 000", "b\u2028c"]]


CONLLU = """\
# sent_id = 1
# text = Don't go to New York #1
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\t_\tMood=Imp\t3\taux\t_\t_
2\tn't\tnot\tPART\t_\t_\t3\tadvmod\t_\tSpaceAfter=No
3\tgo\tgo\tVERB\t_\t_\t0\troot\t_\t_
3.1\tgone\tgo\tVERB\t_\t_\t_\t_\t_\t_
4\tNew York\tNew York\tPROPN\t_\t_\t3\tobl\t_\t_

# sent_id = 2
1\t#\t#\tSYM\t_\t_\t0\troot\t_\t_
"""


@pytest.mark.parametrize(("name", "settings"), [("x.conllu", {}), ("x.txt", {"format": "conllu"})])
def test_conll_u(tmp_path: Path, name: str, settings: dict[str, str]) -> None:
    table = read(tmp_path, CONLLU, name, **settings)
    assert lists(table, "tokens") == lists(table, "form") == [["Do", "n't", "go", "New York"], ["#"]]
    assert lists(table, "tags") == [["AUX", "PART", "VERB", "PROPN"], ["SYM"]]
    assert lists(table, "deprel")[0] == lists(table, "8")[0] == ["aux", "advmod", "root", "obl"]
    assert "read as CoNLL-U, so tokens are its forms (column 2)" in table.notes[0]


def test_encodings(tmp_path: Path) -> None:
    content = "kühl\tB-x\n"
    assert lists(read(tmp_path, content.encode("cp1252"), encoding="windows-1252"), "tokens") == [["kühl"]]
    table = read(tmp_path, content.encode("utf-16"))
    assert lists(table, "tokens") == [["kühl"]]
    assert "read as utf-16, by its byte order mark" in table.notes[0]
    with pytest.raises(DataError, match=r"x.conll, line 3: byte 0xfc is not UTF-8, perhaps windows-1252. Set data.enc"):
        read(tmp_path, b"a O\n\n" + content.encode("cp1252"))
    with pytest.raises(DataError, match=r"x.conll, line 1: byte 0xfc is not UTF-8"):
        read(tmp_path, content.encode("cp1252"))


@pytest.mark.parametrize(
    ("content", "settings", "problem"),
    [
        ("", {}, "x.conll: the file is empty"),
        ("\n \n-DOCSTART- O\n", {}, "x.conll: has no words"),
        ("a O\nb\n", {}, "line 2: 'b' has no tag: 1 column where line 1 has 2. Add the tag behind the word"),
        ("\na X O\nb X\n", {}, "line 3: 'b' has no tag: 2 columns where line 2 has 3"),
        ("a O\n\nb c d O\n", {}, "line 3: 4 columns where line 1 has 2. White space separates columns"),
        ("a O\n# b c\n", {}, "line 2: 3 columns where line 1 has 2"),
        ("a\nb O\n", {}, "line 2: 2 columns where line 1 has 1"),
        (
            "a O\n",
            {"columns": ("x", "y", "z")},
            r"line 1: 'a' has no tag: 2 columns where data.columns names 3 \(x",
        ),
        ("a O\n" * 60_000, {"max_gb": 0.0005}, "unpacked, the rows need more than 0.0005 GB"),
        ("a O\n" * 30_000, {"max_gb": 0.0005}, "unpacked, the rows need more than 0.0005 GB"),
        ("a O\n\n" * 30_000, {"max_gb": 0.0013}, "unpacked, the rows need more than 0.0013 GB"),
        ("a" * ((1 << 24) + (1 << 20)), {}, "line 1: is longer than 16 MB"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: str, settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read(tmp_path, content, **settings)


def test_many_words_are_read_in_pieces(tmp_path: Path) -> None:
    sentences = [[f"w{number}" for number in range(start, start + 7)] for start in range(0, 140_000, 7)]
    table = read(tmp_path, "\n\n".join("\n".join(f"{word}\tO" for word in words) for words in sentences))
    assert lists(table, "tokens") == sentences


def test_files_with_other_endings_are_read_if_the_format_is_set(tmp_path: Path) -> None:
    for name in ("train.txt", "eng.testa", "dev"):
        (tmp_path / name).write_text(TWO)
    source = open_source(str(tmp_path), Reading(format="conll"))
    for split in ("train", "eng.testa", "dev", "*.testa"):
        (table,) = source.read(split)
        assert lists(table, "tags") == TAGS
    assert source.splits == ("train",)
    for name in ("eng.testa", "eng.*"):
        (table,) = open_source(f"{tmp_path}/{name}", Reading(format="conll")).read("train")
        assert lists(table, "tokens") == WORDS
    with pytest.raises(DataError, match=r"cannot read files ending in '.testa'. .* with data.format=conll"):
        open_source(f"{tmp_path}/eng.testa", Reading())
    assert open_source(str(tmp_path), Reading()).parts("eng.testa") == frozenset()
    with pytest.raises(SpecError, match=r"Reading\.format"):
        Reading(format="conl")


WNUT = Path(__file__).parents[3] / "shared" / "data" / "wnut17"


@pytest.mark.skipif(not WNUT.is_dir(), reason="the data do not travel with the project")
@pytest.mark.parametrize(
    ("split", "sentences", "words"),
    [("wnut17train", 3394, 62730), ("emerging.dev", 1009, 15733), ("emerging.test.annotated", 1287, 23394)],
)
def test_wnut17(split: str, sentences: int, words: int) -> None:
    (table,) = open_source(str(WNUT), Reading(format="conll")).read(split)
    column = word_column(table, "tokens", "task.text")
    assert len(column) == sentences
    assert len(column.values) == words
