"""Rows without gold, from which students learn by the teacher's answers alone.

They are rows of train whose label is empty, and the rows of a source of their own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, Field

from kdray.data.findings import BLANK
from kdray.data.gold import no_gold
from kdray.data.repeats import Example, repeats
from kdray.data.task_data import TaskData
from kdray.errors import DataError
from kdray.sources.generated.generators import NameOrGenerator
from kdray.sources.opening import Source, open_source
from kdray.sources.reading import Reading
from kdray.sources.tables import short_repr


class Unlabelled(Reading):
    """Texts without labels, in a source of their own."""

    source: NameOrGenerator
    """A Hugging Face dataset name, a local folder, a local file, a pattern of file names, or a generator."""
    config: str | None = None
    """The configuration of a hub dataset that has several; for a local folder, the name of a folder in it."""
    revision: str | None = None
    """The revision of a hub dataset; a commit hash pins it."""
    split: str | tuple[str, ...] = "train"
    """The split to read: its name, a pattern of file names in the folder `source`, or a list of these."""
    text: str | None = Field(None, min_length=1)
    """The column with the texts; None: the column that the task names."""
    pair: str | None = Field(None, min_length=1)
    """The column with the second texts, for pairs; None: the column that the task names."""


def _source_named(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


NameOrUnlabelled = Annotated[Unlabelled, BeforeValidator(_source_named)]
"""The type of a setting that holds the name of a source, or the settings of one."""


def read_unlabelled(unlabelled: Unlabelled, task: TaskData, own: Source, own_reading: Reading) -> list[pa.Table]:
    """The columns `text` and `pair` of texts without labels, a table for each file.

    If the source of the labelled rows, `own`, has a split of this name, that split is read. Another source is read as
    that of the labelled rows is, unless it has settings of its own. Raises DataError for a source that cannot be read,
    and for one without texts.
    """
    has_own_settings = unlabelled.model_fields_set & Reading.model_fields.keys()
    source, splits = _open(unlabelled, own, unlabelled if has_own_settings else own_reading)
    names = {name: value for name in ("text", "pair") if (value := getattr(unlabelled, name)) is not None}
    tables = []
    for split in splits:
        for table in source.read(split):
            if not any(len(cells) for cells in table.columns.values()):
                continue  # a json file without rows has no columns either
            checked = task.read_texts_only(table, names)
            columns = {"text": checked.texts} | ({} if checked.pairs is None else {"pair": checked.pairs})
            tables.append(pa.table(columns))
    if not sum(table.num_rows for table in tables):
        raise DataError(f"data.unlabelled {source.where}: it has no rows. Give texts, or leave it out.")
    return tables


def _open(unlabelled: Unlabelled, own: Source, reading: Reading) -> tuple[Source, tuple[str, ...]]:
    name = unlabelled.source
    if isinstance(name, str) and own.parts(name) and (name in own.splits or not Path(name).expanduser().exists()):
        return own, (name,)
    source = open_source(unlabelled.source, reading, unlabelled.config, unlabelled.revision)
    splits = (unlabelled.split,) if isinstance(unlabelled.split, str) else unlabelled.split
    missing = next((split for split in splits if not source.parts(split)), None)
    if missing is not None:
        raise DataError(
            f"data.unlabelled {source.where}: no split {missing!r} (data.unlabelled.split); it has "
            f"{', '.join(source.splits) or 'none'}."
        )
    return source, splits


def usable_texts(tables: Sequence[pa.Table], measured: Mapping[str, pa.Table], notes: list[str]) -> pa.Table:
    """These texts without blank ones, and without those that stand in a split that is measured.

    `measured` has the rows of validation and test. Adds a note with the number of each kind of text that is left out.
    Raises DataError if no text is left.
    """
    table = pa.concat_tables(tables)
    is_blank = np.logical_and.reduce([_are_blank(column) for column in table.columns])
    if is_blank.any():
        notes.append(f"{is_blank.sum():,} of {len(is_blank):,} texts without labels are blank and are left out.")
        table = table.filter(pa.array(~is_blank))
    found = repeats(_columns(table), [_columns(rows) for rows in measured.values()])
    for kind, is_repeat, example in (("", found.exact_N, found.exact), (" nearly", found.near_N, found.near)):
        if example is not None:
            notes.append(_removed(kind, is_repeat, example, list(measured)))
    if (is_repeat_N := found.exact_N | found.near_N).any():
        table = table.filter(pa.array(~is_repeat_N))
    if not table.num_rows:
        reason = "are blank" if is_blank.all() else "stand in validation or test, or are blank"
        raise DataError(f"data.unlabelled: all {len(is_blank):,} texts without labels {reason}. Give others.")
    return table


def _removed(kind: str, is_repeat: np.ndarray, example: Example, roles: Sequence[str]) -> str:
    other = f" ({roles[example.other]}: {short_repr(example.repeated)})" if kind else ""
    return (
        f"{is_repeat.sum():,} of {len(is_repeat):,} texts without labels stand{kind} in {' or '.join(roles)}, too, for "
        f"example {short_repr(example.text)}{other}; left out, because the students are measured there."
    )


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {name: table[name] for name in ("text", "pair") if name in table.column_names}


def draw_texts(table: pa.Table, count: int, seed: int) -> pa.Table:
    """So many texts, drawn at random, in their original order."""
    if count == table.num_rows:
        return table
    rows = np.random.default_rng(seed).permutation(table.num_rows)[:count]
    return table.take(pa.array(np.sort(rows)))


def without_gold(table: pa.Table, labels: pa.DataType, first_id: int) -> pa.Table:
    """These texts as rows of a split whose column `label` has the type `labels`; the ids begin with `first_id`."""
    gold = no_gold(table["text"], labels)
    ids = pa.array(np.arange(first_id, first_id + table.num_rows))
    return pa.table({"id": ids, **{name: table[name] for name in table.column_names}, "label": gold})


def _are_blank(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_nested(column.type):
        blank = pc.equal(pc.list_value_length(column), 0)
    else:
        blank = pc.match_substring_regex(column, BLANK)
    return np.asarray(blank.to_numpy(zero_copy_only=False))
