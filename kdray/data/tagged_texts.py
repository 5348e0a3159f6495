"""Checks rows with tagged words: lists of words and tags, or texts with spans of their characters.

Rows without words are left out, as rows without gold are: a model has nothing to answer there.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from kdray.data.cells import cell_error, find_column, text_column
from kdray.data.gold import SeveralLabels
from kdray.data.label_lists import label_lists
from kdray.data.list_cells import word_column
from kdray.data.task_data import CheckedTable
from kdray.data.words import Words, split_words, tags_of_spans
from kdray.sources.tables import Column, Table


def read_tagged_words(table: Table, words: str, tags: str | None, class_names: Sequence[str] | None) -> CheckedTable:
    """The rows of a table with a column of words and a column of tags; `tags` None: there are no tags.

    Raises DataError, with file and row, for a row with another number of tags than of words.
    """
    column = word_column(table, words, "task.text")
    texts = pa.LargeListArray.from_arrays(pa.array(column.starts, pa.int64()), column.values)
    if tags is None:
        return CheckedTable(where=table.where, texts=texts, pairs=None, gold=None)
    gold = label_lists(table, tags, class_names)
    lengths, tag_counts = np.diff(column.starts), np.diff(gold.starts)
    different = np.flatnonzero((lengths != tag_counts) & ~gold.absent)
    if len(different):
        row = int(different[0])
        problem = f"{tag_counts[row]} tags for {lengths[row]} words ({words!r})"
        raise cell_error(table, row, tags, problem, "every word has one tag")
    return CheckedTable(where=table.where, texts=texts, pairs=None, gold=_without_empty_rows(gold, lengths))


def read_tagged_spans(table: Table, text: str, spans: str | None) -> CheckedTable:
    """The rows of a table with a column of texts and a column of lists of spans; `spans` None: there are none.

    The texts are divided into words, and the spans become tags of the scheme BIO. Raises DataError, with file and row,
    for a span that does not fit.
    """
    texts = text_column(table, text, "task.text").to_pylist()
    words = [split_words(each) for each in texts]
    starts = np.cumsum([0, *map(len, words)])
    values = pa.array([word for each in words for word in each.texts], pa.large_string())
    lists = pa.LargeListArray.from_arrays(pa.array(starts, pa.int64()), values)
    if spans is None:
        return CheckedTable(where=table.where, texts=lists, pairs=None, gold=None)
    tags = _tags(table, spans, texts, words)
    names, codes = np.unique(np.array(tags, object).astype(str), return_inverse=True)
    gold = SeveralLabels(codes.astype(np.int64), tuple(names.tolist()), starts, np.zeros(len(texts), bool))
    return CheckedTable(where=table.where, texts=lists, pairs=None, gold=_without_empty_rows(gold, np.diff(starts)))


def _tags(table: Table, spans: str, texts: Sequence[str], words: Sequence[Words]) -> list[str]:
    """The tags of all words, row after row."""
    cells = _cells(find_column(table, spans, "task.label"))
    tags: list[str] = []
    for row, (text, each, cell) in enumerate(zip(texts, words, cells, strict=True)):
        try:
            if cell is not None and not isinstance(cell, list):
                raise ValueError(f"a {type(cell).__name__} is no list of spans")
            tags += tags_of_spans(text, each, cell or [])
        except ValueError as error:
            rule = "a span has start, end and label, and covers whole words"
            raise cell_error(table, row, spans, str(error), rule) from None
    return tags


def _cells(column: Column) -> list[Any]:
    return column if isinstance(column, list) else column.to_pylist()


def _without_empty_rows(gold: SeveralLabels, lengths: np.ndarray) -> SeveralLabels:
    return SeveralLabels(gold.codes, gold.by_code, gold.starts, gold.absent | (lengths == 0))
