"""Escaped text: each target shows it, and obeys no part of it."""

import csv
import html
import io

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from kdray.safe_text.escaping import (
    html_text,
    markdown_code,
    markdown_table,
    markdown_text,
    one_line,
    printable,
    terminal_text,
    visible,
    yaml_text,
)
from kdray.safe_text.spreadsheet import csv_cell, is_formula, write_csv
from tests.safe_text.hostile import HOSTILE, assert_no_control_characters, html_tags, markdown_tags

TEXTS = st.text(max_size=40) | st.text("\\`*_[]<>|~&$#!-+=:.)(1a \n/w", max_size=30)
PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


@given(TEXTS)
def test_a_terminal_shows_every_character(text: str) -> None:
    assert_no_control_characters(terminal_text(text))
    assert_no_control_characters(one_line(text))
    assert "\n" not in one_line(text)
    assert printable(text).isprintable()


def test_control_characters_are_shown_as_python_writes_them() -> None:
    assert visible("a\x1b[2J\x9b\u202e\U000e0041\n\tb") == "a\\x1b[2J\\x9b\\u202e\\U000e0041\n\tb"
    assert terminal_text("a\rb\nkdray: fine") == "a\\rb\n    kdray: fine"


@pytest.mark.parametrize("text", ["Größe 🤖 日本語 हिन्दी", "می‌خواهم", "👩‍👩‍👧", "soft\u00adhyphen", "no\u00a0break"])
def test_ordinary_text_of_any_language_stays(text: str) -> None:
    assert visible(text) == text


def test_a_long_value_ends_with_an_ellipsis() -> None:
    assert printable("x" * 9, 5) == "xxxx…"
    assert printable(["\x1b"]) == "['\\x1b']"


@given(TEXTS)
def test_markdown_shows_the_text_and_nothing_else(text: str) -> None:
    shown = one_line(text)
    expected = f"<p>{html.escape(shown, quote=False).replace(chr(34), '&quot;')}</p>\n" if shown else ""
    assert PARSER.render(markdown_text(text)) == expected


@given(TEXTS)
def test_a_code_span_shows_the_text(text: str) -> None:
    tags = markdown_tags(f"a {markdown_code(text)} b")
    assert tags == ["p", "code"]


@given(st.lists(st.lists(TEXTS, min_size=2, max_size=2), max_size=3))
def test_a_table_has_its_cells_and_no_other_tags(rows: list[list[str]]) -> None:
    marked = [[text, markdown_code(code)] for text, code in rows]
    tags = markdown_tags(markdown_table(["title", "|b|"], marked))
    assert [tag for tag in tags if tag != "code"] == [
        *["table", "thead", "tr", "th", "th"],
        *(["tbody"] if rows else []),
        *["tr", "td", "td"] * len(rows),
    ]


def test_escaped_markdown_is_not_escaped_again() -> None:
    once = markdown_text("a*b")
    assert markdown_text(once) == once == "a\\*b"
    assert markdown_text("max_length 0.95 (95%: -0.8 to +1.2), trial 003: 1.5 ms") == (
        "max_length 0.95 (95%: -0.8 to +1.2), trial 003: 1.5 ms"
    )


@given(TEXTS)
def test_html_has_no_tags(text: str) -> None:
    assert html_tags(f"<p title='{html_text(text)}'>{html_text(text)}</p>") == ["p"]


@given(TEXTS)
def test_a_value_of_a_yaml_document_stays_one_value(text: str) -> None:
    document = f"---\n{yaml.dump({'name': yaml_text(text), 'license': 'mit'}, sort_keys=False)}---\n"
    _, front, rest = document.split("---\n", 2) if document.count("---\n") == 2 else ("", "", "")
    assert rest == ""
    assert yaml.safe_load(front) == {"name": yaml_text(text), "license": "mit"}


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1+cmd", "-2+3", "@SUM(1)", " =1", "\t=1", "\n=1", "'=1", '"=1', "＝1", "\x00=1", "\ufeff=1", "\r1"],
)
def test_a_formula_begins_with_an_apostrophe(text: str) -> None:
    assert is_formula(text)
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["-0.5", "+1e-3", "-inf", "1,024", "a=1", "", "don't", 7, -0.5, None, True])
def test_other_cells_stay(value: object) -> None:
    assert csv_cell(value) is value


@pytest.mark.parametrize("text", [*HOSTILE.values(), "a\rb", "a\nb", 'a"b', "a,b"], ids=repr)
def test_a_csv_file_has_no_formula_and_loses_nothing(text: str) -> None:
    safe, raw = io.StringIO(), io.StringIO()
    write_csv(safe, [["a", text]])
    write_csv(raw, [["a", text]], raw=True)
    ((_, cell),) = csv.reader(io.StringIO(safe.getvalue(), newline=""))
    assert not cell.lstrip().startswith(("=", "+", "-", "@"))
    assert cell.removeprefix("'" if is_formula(text) else "") == text
    assert list(csv.reader(io.StringIO(raw.getvalue(), newline=""))) == [["a", text]]
