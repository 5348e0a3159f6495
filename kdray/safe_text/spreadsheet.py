"""csv files that somebody may open in a spreadsheet, which takes some texts for formulas and computes them.

A formula can send the other cells of the sheet over the network, or start a program.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

_FORMULA = re.compile(r"[\s'\"\x00-\x1f\ufeff\u200b]*[=+\-@\t\r＝＋－＠]")
"""The start of a cell that a spreadsheet may take for a formula."""
_NUMBER = re.compile(r"[+-]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?%?|[+-]?(?:inf|nan)")


def csv_cell(value: Any) -> Any:
    """The value for a cell; a text that a spreadsheet would take for a formula gets an apostrophe at its start.

    Numbers stay numbers, also those that are text. Such a text that begins with an apostrophe gets another one, so the
    first apostrophe can be removed again without loss.
    """
    return f"'{value}" if is_formula(value) else value


def is_formula(value: Any) -> bool:
    """Whether a spreadsheet may take this cell for a formula, now or without its first apostrophe."""
    return isinstance(value, str) and bool(_FORMULA.match(value)) and not _NUMBER.fullmatch(value)


def write_csv(stream: TextIO, rows: Iterable[Sequence[Any]], *, raw: bool = False) -> None:
    """Write the rows with line feeds between them. With `raw`, the cells are written as they are."""
    writer = csv.writer(_LineFeedStream(stream))
    writer.writerows(rows if raw else ([csv_cell(cell) for cell in row] for row in rows))


@dataclass(frozen=True)
class _LineFeedStream:
    """The output of the csv writer, with the line end \\r\\n of that writer replaced by \\n.

    The writer quotes a cell with \\r only if its own line end contains \\r, so it cannot be given \\n itself.
    """

    stream: TextIO

    def write(self, line: str) -> int:
        return self.stream.write(line.removesuffix("\r\n") + "\n")
