"""Text that somebody else wrote, made harmless for the place where it is shown.

A character that a target would obey is written so that the target shows it: a control character as Python would write
it (`\\x1b`), the punctuation of a markup language with that language's own escape. Text without such characters stays
as it is. Secrets are masked in `secrets`, before a text is escaped.
"""

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence

_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""The categories of Unicode whose characters are obeyed and not shown.

Control characters (C0 with ESC, C1), format characters (direction of writing, zero width, tags), halves of surrogate
pairs, line and paragraph separators.
"""
_INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
"""Characters of other categories that are shown as nothing or as a space, such as the Hangul fillers."""
_JOINERS = "\u00ad\u200c\u200d"
"""Format characters that ordinary text needs: the soft hyphen, and the joiners of Persian, Hindi and emojis."""

_MARKDOWN = re.compile(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)
"""Punctuation that is markup anywhere in a line: code, emphasis, links, HTML, tables, formulas, addresses."""
_MARKDOWN_START = re.compile(r"^(?:[-+](?=[-\s]|$)|[#=]|:(?=-)|(\d+)(?=[.)](?:\s|$)))")
"""The start of a line that begins a list, a heading, a rule or the line below the titles of a table."""


def visible(text: str) -> str:
    """The text with each character that is obeyed and not shown written as `\\x1b`, except line feeds and tabs."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible_character(each) if _is_obeyed(each) else each for each in text)


def one_line(text: str) -> str:
    """The visible text in one line: white space of any kind is one space."""
    return visible(" ".join(text.split()))


def printable(value: object, max_length: int = 500) -> str:
    """A value from a file as it may stand in a sentence: visible, on one line; a long one ends with an ellipsis."""
    cut = str(value)
    cut = cut if len(cut) <= max_length else f"{cut[: max_length - 1]}…"
    return "".join(each if each.isprintable() and each not in _INVISIBLE else _visible_character(each) for each in cut)


def terminal_text(text: str) -> str:
    """The text for a terminal. Its further lines are indented, so that none of them looks like another message."""
    first, *others = visible(text).split("\n")
    return "\n".join([first, *(f"    {line}" for line in others)])


class Markdown(str):
    """Text that is Markdown already, so that it is not escaped again."""

    __slots__ = ()


def markdown_text(text: str) -> Markdown:
    """The text for one line or one table cell of a Markdown document, in which it is no markup."""
    if isinstance(text, Markdown):
        return text
    escaped = _MARKDOWN.sub(lambda match: f"\\{match[0]}", one_line(text))
    # A number needs the backslash behind it: `\1` is no escape of Markdown.
    return Markdown(_MARKDOWN_START.sub(lambda match: f"{match[0]}\\" if match[1] else f"\\{match[0]}", escaped))


def markdown_code(text: str) -> Markdown:
    """The text as a code span of a Markdown document, also in a table cell."""
    line = one_line(text)
    runs = [len(run) for run in re.findall("`+", line)]
    # A code span ends at a run of as many backticks as it began with.
    fence = "`" * next(length for length in range(1, len(runs) + 2) if length not in runs)
    padding = " " if line.startswith("`") or line.endswith("`") or not line.strip() else ""
    # In a table a vertical bar ends the cell, even in a code span, unless it is escaped.
    return Markdown(f"{fence}{padding}{line}{padding}{fence}".replace("|", "\\|"))


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells that are not Markdown already are escaped. The first column is aligned left, the others right."""
    lines = [*([markdown_text(cell) for cell in row] for row in (titles, *rows))]
    lines.insert(1, [Markdown("---"), *[Markdown("---:")] * (len(titles) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def html_text(text: str) -> str:
    """The text for HTML, and for the labels of plotly, which read a part of HTML."""
    return html.escape(one_line(text))


def yaml_text(text: str) -> str:
    """The text for a value that a YAML library writes: in one line, so that no `---` in it can end the document."""
    return one_line(text)


def _is_obeyed(character: str) -> bool:
    if character in _INVISIBLE:
        return True
    return character not in f"\n\t{_JOINERS}" and unicodedata.category(character) in _OBEYED


def _visible_character(character: str) -> str:
    return character.encode("unicode_escape").decode()
