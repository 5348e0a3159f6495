"""Checks a text column in which each cell holds the names of several labels, with a separator between them.

A wrong cell raises DataError with its row. `kdray.data.gold` has the labels of rows; N is the number of rows.
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdray.data.cells import text_column
from kdray.data.gold import SeveralLabels
from kdray.sources.tables import Column, Table, short_repr


@dataclass(frozen=True)
class SeparatedColumn:
    """The labels of a column, and what was odd in its cells."""

    labels: SeveralLabels
    has_separator: bool
    """Whether the separator occurs in any cell. If not, the caller refuses it: each cell was read as one name."""
    notes: tuple[str, ...]
    """One sentence for everything that was left out."""


def separated_column(table: Table, name: str, separator: str, setting: str) -> SeparatedColumn:
    """The labels of each row. `setting` is the setting that names the column.

    White space around a name is removed, and an empty cell means that the row has no label. A name that a row has twice
    counts once, and an empty name between two separators is left out: a note has their number and an example.
    Raises DataError if the column is missing, and with file and row for the first cell that is not a text.
    """
    texts = _texts(table, name, setting)
    lists = pc.split_pattern(texts, pattern=separator)
    counts_N = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    names = pc.utf8_trim_whitespace(lists.flatten())
    rows = np.repeat(np.arange(len(texts)), counts_N)
    is_empty = pc.equal(names, "").to_numpy(zero_copy_only=False)
    encoded = names.filter(pa.array(~is_empty)).dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    is_doubled = _is_repeated(rows[~is_empty], codes)
    # Words with several spaces between them have no empty names, and an empty cell is no mistake.
    blank_rows = rows[is_empty & (counts_N[rows] > 1)] if separator.strip() else np.array([], np.int64)
    notes = (
        *_note(table, name, texts, blank_rows, "empty names between separators, left out"),
        *_note(table, name, texts, rows[~is_empty][is_doubled], "names that their row has twice, counted once"),
    )
    labels_N = np.bincount(rows[~is_empty][~is_doubled], minlength=len(texts))
    labels = SeveralLabels(
        codes=codes[~is_doubled],
        by_code=tuple(encoded.dictionary.to_pylist()),
        starts=np.concatenate([[0], np.cumsum(labels_N)]).astype(np.int64),
        absent=np.zeros(len(texts), bool),
    )
    return SeparatedColumn(labels, has_separator=bool((counts_N > 1).any()), notes=notes)


def _texts(table: Table, name: str, setting: str) -> pa.Array:
    """The column as Arrow text, with "" for an empty cell, which `text_column` would refuse."""
    column = table.column(name)
    if column is not None:
        table = replace(table, columns={name: _without_nulls(column)})
    return text_column(table, name, setting)


def _without_nulls(column: Column) -> Column:
    if isinstance(column, list):
        return ["" if cell is None else cell for cell in column]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        # As bytes, which `text_column` decodes: there a message can give the row of a byte that is not UTF-8.
        return pc.fill_null(column.cast(pa.large_binary()), b"")
    except pa.ArrowException:
        return column  # not a column of texts: `text_column` says so, with the row


def _is_repeated(rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Whether each pair of a row and a code is equal to an earlier one."""
    is_repeated = np.ones(len(rows), bool)
    is_repeated[np.unique(np.stack([rows, codes], axis=1), axis=0, return_index=True)[1]] = False
    return is_repeated


def _note(table: Table, name: str, texts: pa.Array, rows: np.ndarray, what: str) -> tuple[str, ...]:
    if not len(rows):
        return ()
    example = f"row {rows[0] + 1}, {short_repr(texts[int(rows[0])].as_py())}"
    return (f"{table.where}, column {name!r}: {what}: {len(rows)}, for example in {example}.",)
