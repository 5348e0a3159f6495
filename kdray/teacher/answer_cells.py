"""Reads the numbers of a table with a teacher's answers: a column for each output, or lists of the best labels.

Shapes: N rows of the table, A answers, C outputs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdray.data.cells import cell_error, find_column
from kdray.data.number_cells import number_column
from kdray.errors import DataError, did_you_mean
from kdray.sources.tables import Column, Table, short_list, short_repr
from kdray.teacher.answer_file import AnswerFile

SETTING = "teacher.outputs"
_LIST_RULE = "every cell must hold a list with one finite number for each word"
_TOP_RULE = "every cell must hold a list; give the rows as JSON lines or Parquet"


@dataclass(frozen=True)
class StatedAnswers:
    """The numbers of all answers in a table, as it states them."""

    values_AxC: np.ndarray
    """float64; nan for an empty cell."""
    starts: np.ndarray
    """The number of the first answer of each row, and at the end the number of all answers (N + 1)."""
    are_listed: bool = False
    """Whether the table lists some labels only; nan then stands for a label that is not listed."""

    def row_of(self, answer: int) -> int:
        """The number of the row, from 0, that this answer is in."""
        return int(np.searchsorted(self.starts, answer, side="right")) - 1


def stated_answers(table: Table, file: AnswerFile, outputs: Sequence[str]) -> StatedAnswers:
    """The numbers of a table for these outputs.

    Raises DataError, with file, row and column, for columns that are missing and for cells that hold something else.
    """
    names = [f"{file.prefix}{output}" for output in outputs]
    missing = [name for name in names if table.column(name) is None]
    if len(missing) == len(names) and table.column(file.labels) is not None:
        return _listed_answers(table, file, outputs)
    if missing:
        hint = did_you_mean(missing[0], table.names, [short_list(sorted(table.names))])
        raise DataError(
            f"{table.where}: no column {missing[0]!r} ({SETTING}); {hint} There must be a column for each of "
            f"{short_list(names)}, or the columns {file.labels!r} and {file.probabilities!r} with lists of the most "
            f"probable labels."
        )
    columns = [_numbers(table, name) for name in names]
    counts_N = columns[0][1]
    for (_, counts), name in zip(columns, names, strict=True):
        if not np.array_equal(counts, counts_N):
            row = int(np.flatnonzero(counts != counts_N)[0])
            raise cell_error(
                table, row, name, f"has {counts[row]} numbers, {names[0]!r} has {counts_N[row]}", _LIST_RULE
            )
    return StatedAnswers(np.stack([values for values, _ in columns], axis=1), _starts(counts_N))


def _starts(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))


def _numbers(table: Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of a column, row after row (float64), and how many each row has: 1, or the length of its list."""
    column = find_column(table, name, SETTING)
    if not _has_lists(column):
        numbers = number_column(table, name, SETTING)
        return numbers, np.ones(len(numbers), np.int64)
    if isinstance(column, pa.ChunkedArray) and pa.types.is_floating(column.type.value_type) and not column.null_count:
        lists = column.combine_chunks()
        values = lists.flatten().cast(pa.float64())
        return values.to_numpy(zero_copy_only=False), pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    lists_N = [_checked_list(table, row, name, cell) for row, cell in enumerate(cells_of(column))]
    return np.array([value for cell in lists_N for value in cell], np.float64), np.array(
        [len(each) for each in lists_N]
    )


def _has_lists(column: Column) -> bool:
    if isinstance(column, list):
        return any(isinstance(cell, list) for cell in column)
    return bool(pa.types.is_list(column.type) or pa.types.is_large_list(column.type))


def _checked_list(table: Table, row: int, name: str, cell: Any) -> list[float]:
    if not isinstance(cell, list):
        raise cell_error(table, row, name, f"{short_repr(cell)} is not a list", _LIST_RULE)
    return [_number(value, lambda problem: cell_error(table, row, name, problem, _LIST_RULE)) for value in cell]


def _number(value: Any, error: Callable[[str], DataError]) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise error(f"{short_repr(value)} is not a finite number")
    return float(value)


def _listed_answers(table: Table, file: AnswerFile, outputs: Sequence[str]) -> StatedAnswers:
    """The answers of a table that lists the most probable labels of each text, or of each word."""
    names, shares = (cells_of(find_column(table, name, SETTING)) for name in (file.labels, file.probabilities))
    number_of = {output: number for number, output in enumerate(outputs)}
    counts, answers = [], []
    for row, (row_names, row_shares) in enumerate(zip(names, shares, strict=True)):
        for name, cell in ((file.labels, row_names), (file.probabilities, row_shares)):
            if not isinstance(cell, list):
                raise cell_error(table, row, name, f"{short_repr(cell)} is not a list", _TOP_RULE)
        has_words = any(isinstance(item, list) for item in row_names)
        lists = (row_names, row_shares) if has_words else ([row_names], [row_shares])
        if len(lists[0]) != len(lists[1]) or not all(isinstance(each, list) for part in lists for each in part):
            raise cell_error(table, row, file.probabilities, f"does not fit {file.labels!r}", _TOP_RULE)
        counts.append(len(lists[0]))
        answers += [_listed(table, row, file, pair, number_of) for pair in zip(*lists, strict=True)]
    return StatedAnswers(np.array(answers).reshape(-1, len(outputs)), _starts(counts), are_listed=True)


def cells_of(column: Column) -> list[Any]:
    """The cells as Python values."""
    return column if isinstance(column, list) else column.to_pylist()


def _listed(
    table: Table, row: int, file: AnswerFile, lists: tuple[list[Any], list[Any]], number_of: dict[str, int]
) -> np.ndarray:
    """The probabilities of one answer (C); nan for a label that is not listed."""

    def error(problem: str) -> DataError:
        rule = "each label stands once, with its probability at the same place of the other list"
        return cell_error(table, row, file.labels, problem, rule)

    names, shares = lists
    if len(names) != len(shares) or not names:
        raise error(f"has {len(names)} labels, {file.probabilities!r} has {len(shares)} numbers")
    answer_C = np.full(len(number_of), np.nan)
    for name, share in zip(names, shares, strict=True):
        if name not in number_of:
            raise error(f"{short_repr(name)} is no label of the data ({short_list(list(number_of))})")
        if np.isfinite(answer_C[number_of[name]]):
            raise error(f"{short_repr(name)} stands twice")
        answer_C[number_of[name]] = _number(share, error)
    return answer_C
