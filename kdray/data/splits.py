"""The rows of a sweep: read, checked cell by cell, and divided into train, validation and test.

Data that no model could learn from are refused here. `sources` reads files and formats, `cells` checks single cells,
`tokens` makes token ids.

A source has splits with names of its own. A split of the source has a role in the sweep: train, validation or test.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from pydantic import Field

from kdray.data.cells import UNLABELLED, LabelCells, label_column, text_column
from kdray.data.cuts import cut_split, draw_rows
from kdray.data.data_files import READABLE
from kdray.data.findings import describe_findings
from kdray.data.generated import GeneratedReviews
from kdray.data.reading import Reading
from kdray.data.rows import TEST, TRAIN, VALIDATION
from kdray.data.sources import Source, open_source
from kdray.data.tables import Table, short_list, short_repr
from kdray.errors import DataError, did_you_mean
from kdray.storage.files import fingerprint
from kdray.tasks.task import Task

ALIASES = {VALIDATION: (VALIDATION, "dev", "valid", "val"), TEST: (TEST,)}
"""The roles whose rows are cut from train if the source has no split for them, and the usual names of such a split."""
WHOLE_NUMBER = re.compile(r"-?\d{1,18}")
"""A whole number that fits into 64 bits."""


class Data(Reading):
    """Where the rows come from, and how they are divided into splits."""

    source: str | GeneratedReviews
    """A Hugging Face dataset name, a local folder, a local file or a pattern of file names such as `part-*.csv`
    (docs/data.md lists the formats), or a generator."""
    config: str | None = None
    """The configuration of a hub dataset that has several; for a local folder, the name of a folder in it."""
    revision: str | None = None
    """The revision of a hub dataset; a commit hash pins it."""
    train: str | tuple[str, ...] = "train"
    """The split to train on: its name, a pattern of file names in the folder `source`, or a list of these."""
    validation: str | tuple[str, ...] | None = VALIDATION
    """The split to evaluate on; with the default, a split named dev, valid or val is found, too.
    None, or the default in a source without such a split: cut from train."""
    test: str | tuple[str, ...] | None = TEST
    """The split that no choice depends on.
    None, or the default in a source without such a split, or a split without labels: cut from train."""
    validation_fraction: float = Field(0.1, gt=0, lt=0.5)
    """The share of train to cut for validation."""
    test_fraction: float = Field(0.1, gt=0, lt=0.5)
    """The share of train to cut for test, after the cut for validation."""
    max_rows: int | None = Field(None, ge=2)
    """The maximum number of rows of each split, drawn so that the shares of the labels stay; for --smoke."""
    seed: int = Field(0, ge=0)
    """The seed of the cuts from train and of the rows that `max_rows` draws."""


@dataclass(frozen=True)
class Splits:
    """Checked rows with the columns id (row number in the split as read), text, pair (for pairs of texts) and label."""

    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    labels: tuple[str, ...]
    """The names of the labels; a name's index is its number in the column label."""
    notes: tuple[str, ...]
    """One sentence for everything that was done although no setting requests it."""
    key: str
    """A fingerprint of all rows and labels."""

    def columns(self, split: str) -> dict[str, Sequence[Any]]:
        """Name -> column, of one split."""
        rows = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        return {name: rows[name] for name in rows.column_names}

    def content(self, split: str) -> str:
        """A fingerprint of the texts and label names of one split; it does not depend on the other splits."""
        columns = self.columns(split)
        labels = [self.labels[label] for label in columns["label"]]
        return fingerprint(labels, {name: list(columns[name]) for name in ("text", "pair") if name in columns})


@dataclass(frozen=True)
class CheckedTable:
    """The checked rows of one table."""

    where: str
    texts: pa.Array
    pairs: pa.Array | None
    labels: LabelCells | None
    """None: the table has no label column."""


def load_splits(data: Data, task: Task) -> Splits:
    """Load, check and divide the rows of a sweep.

    Raises DataError if something cannot be read, or if a model cannot learn from it: the message names the file, the
    row and the column.
    """
    source = open_source(data.source, data, data.config, data.revision)
    roles = _find_splits(source, data)
    tables = {role: [table for split in splits for table in source.read(split)] for role, splits in roles.items()}
    class_names = next((t.class_names[task.label] for t in tables[TRAIN] if task.label in t.class_names), None)
    checked = {role: [_check_table(table, task, role, class_names) for table in some] for role, some in tables.items()}
    labels, numbers = _number_labels(checked[TRAIN], task, class_names)
    notes = [note for some in tables.values() for table in some for note in table.notes]
    if TEST in checked and _is_unlabelled(checked[TEST], numbers):
        # Test splits of public benchmarks often come without labels, or with -1 everywhere.
        notes.append(f"{checked[TEST][0].where}: its rows have no labels, so it is not used.")
        del checked[TEST]
    rows: dict[str, pa.Table] = {}
    for role, parts in checked.items():  # train comes first: the other splits are compared with it
        rows[role] = _join_tables(parts, numbers, notes)
        _check_labels(rows[role], labels, rows[TRAIN], role, parts)
    _cut_missing_splits(rows, data, labels, source.where, notes)
    if data.max_rows:
        rows = {role: draw_rows(table, data.max_rows, data.seed)[0] for role, table in rows.items()}
    notes += describe_findings({role: rows[role] for role in (TRAIN, VALIDATION, TEST)}, labels)
    return Splits(
        train=datasets.Dataset(rows[TRAIN]),
        validation=datasets.Dataset(rows[VALIDATION]),
        test=datasets.Dataset(rows[TEST]),
        labels=labels,
        notes=tuple(notes),
        key=fingerprint(labels, {role: _content_digest(table) for role, table in rows.items()}),
    )


def _find_splits(source: Source, data: Data) -> dict[str, tuple[str, ...]]:
    """Role -> the source's splits for it, without the roles that have none; train comes first.

    Raises DataError if a split is missing or has two roles.
    """
    names = {TRAIN: data.train, VALIDATION: data.validation, TEST: data.test}
    found = {role: _find_split(source, role, name) for role, name in names.items()}
    splits = {role: some for role, some in found.items() if some}
    parts = {role: frozenset().union(*map(source.parts, some)) for role, some in splits.items()}
    for one, other in ((TRAIN, VALIDATION), (TRAIN, TEST), (VALIDATION, TEST)):
        if parts.get(one, frozenset()) & parts.get(other, frozenset()):
            raise DataError(
                f"{source.where}: data.{one} and data.{other} name the same split {', '.join(splits[other])!r}, so a "
                f"student would be measured on rows that it was trained on or chosen by. Name different splits, or "
                f"null to cut one from train."
            )
    return splits


def _find_split(source: Source, role: str, name: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The source's splits for this role; none if the rows shall be cut from train.

    Raises DataError if the source lacks one of them, unless the name is the default one of validation or test.
    """
    if name is None:
        return ()
    if name == role and role in ALIASES:
        return tuple(candidate for candidate in ALIASES[role] if source.parts(candidate))[:1]
    names = (name,) if isinstance(name, str) else name
    missing = next((each for each in names if not source.parts(each)), None)
    if missing is not None and not source.splits:
        raise DataError(
            f"data.source {source.where}: no data files in it. Allowed: train, validation and test with one of the "
            f"endings {READABLE}; or set data.train to a pattern of file names."
        )
    if missing is not None:
        raise DataError(
            f"{source.where}: no split {missing!r} (data.{role}); {did_you_mean(missing, source.splits)} "
            f"A file is named for its split, such as {role}.csv; a single file may be given as data.source itself."
        )
    return names


def _check_table(table: Table, task: Task, role: str, class_names: Sequence[str] | None) -> CheckedTable:
    """Check the cells of one table. `class_names` are for a table whose own features have none."""
    texts = text_column(table, task.text, "task.text")
    pairs = text_column(table, task.pair, "task.pair") if task.pair else None
    labels = None
    if role != TEST or table.column(task.label) is not None:  # only a test split may lack the label column
        labels = label_column(table, task.label, table.class_names.get(task.label, class_names))
    return CheckedTable(where=table.where, texts=texts, pairs=pairs, labels=labels)


def _number_labels(
    train: list[CheckedTable], task: Task, class_names: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The labels in order, and the number of each name that the data may contain."""
    found = {name for part in train if part.labels for name in part.labels.names if name is not None}
    order = task.labels or class_names
    if order is None and all(WHOLE_NUMBER.fullmatch(name) for name in found):
        # By value, so that 10 follows 9; names of the same value, such as 1 and 01, by name.
        order = sorted(found, key=lambda name: (int(name), name))
    elif order is None:
        order = sorted(found)
    numbers = {name: number for number, name in enumerate(order)}
    if found <= {str(number) for number in range(len(order))} and not found <= set(order):
        # The data contain the numbers 0, 1, ..., and task.labels gives their names.
        numbers = {str(number): number for number in range(len(order))}
    return tuple(order), numbers


def _is_unlabelled(test: list[CheckedTable], numbers: Mapping[str, int]) -> bool:
    """Whether no row of the test split has a label: no label column, or only empty and -1 ones.

    If train has a label -1, then -1 is a label like any other.
    """
    no_label = {None} if str(UNLABELLED) in numbers else {None, str(UNLABELLED)}
    has_rows = any(len(part.texts) for part in test)  # a split without rows is an error, not an unlabelled split
    return has_rows and all(part.labels is None or set(part.labels.names) <= no_label for part in test)


def _join_tables(parts: list[CheckedTable], numbers: Mapping[str, int], notes: list[str]) -> pa.Table:
    """One table of the rows of a split. Leave out rows without a label, and add a note with their count."""
    label_numbers = np.concatenate([_label_numbers(part, numbers) for part in parts])
    columns = {"id": pa.array(np.arange(len(label_numbers))), "text": pa.chunked_array([part.texts for part in parts])}
    if parts[0].pairs is not None:
        columns["pair"] = pa.chunked_array([part.pairs for part in parts])
    table = pa.table({**columns, "label": pa.array(label_numbers)})
    unlabelled = int((label_numbers == UNLABELLED).sum())
    if not unlabelled:
        return table
    notes.append(f"{parts[0].where}: {unlabelled} of {len(label_numbers)} rows have no label and are left out.")
    return table.filter(pa.array(label_numbers != UNLABELLED))


def _label_numbers(part: CheckedTable, numbers: Mapping[str, int]) -> np.ndarray:
    """The number of each row's label, -1 for a row without one. Raises DataError for a name that has no number."""
    if part.labels is None:
        raise DataError(f"{part.where}: no label column, but other files of this split have one.")
    for code, name in enumerate(part.labels.names):
        if name is not None and name not in numbers:
            row = int(np.flatnonzero(part.labels.codes == code)[0])
            raise DataError(
                f"{part.where}, row {row + 1}: label {short_repr(name)} is neither in task.labels nor in train, which "
                f"has {short_list(list(numbers))}. Correct the row, or name every label in task.labels."
            )
    number_by_code = [UNLABELLED if name is None else numbers[name] for name in part.labels.names]
    return np.array(number_by_code, np.int64)[part.labels.codes]


def _check_labels(
    table: pa.Table, labels: Sequence[str], train: pa.Table, role: str, parts: list[CheckedTable]
) -> None:
    """Raise DataError if a split is empty, has one class only, or has a label that train does not have.

    A test split of one class is accepted.
    """
    where = parts[0].where
    if table.num_rows == 0:
        raise DataError(
            f"{where}: the split has no rows. Give a split with rows; or leave it out, and kdray cuts it from train."
        )
    present = np.unique(table["label"].to_numpy())
    if len(present) == 1 and role != TEST:
        raise DataError(
            f"{where}: all {table.num_rows} rows have the label {labels[present[0]]!r}; at least two are needed. "
            f"Check the label column (task.label)."
        )
    unseen = np.setdiff1d(present, train["label"].to_numpy())
    if len(unseen):
        index = int(np.flatnonzero(table["label"].to_numpy() == unseen[0])[0])
        # The id is the row number in all files of the split together; the message needs the row in its own file.
        row, part = table["id"][index].as_py(), 0
        while row >= len(parts[part].texts):
            row, part = row - len(parts[part].texts), part + 1
        raise DataError(
            f"{parts[part].where}, row {row + 1}: label {labels[unseen[0]]!r} does not occur in train, so no model can "
            f"learn it. Add such rows to train, or remove them here."
        )


def _cut_missing_splits(
    rows: dict[str, pa.Table], data: Data, labels: Sequence[str], where: str, notes: list[str]
) -> None:
    """Cut validation and test from train where the source has none, and add a note for each."""
    for role, fraction in ((VALIDATION, data.validation_fraction), (TEST, data.test_fraction)):
        if role not in rows:
            rows[TRAIN], rows[role] = cut_split(rows[TRAIN], fraction, data.seed, labels, where=where, role=role)
            notes.append(f"{where}: {rows[role].num_rows} rows were cut from train for {role}, by label.")


def _content_digest(table: pa.Table) -> str:
    """The SHA-256 of the cells in hexadecimal; how the columns are divided into chunks makes no difference."""
    digest = hashlib.sha256()
    with pa.ipc.new_stream(pa.PythonFile(_HashingFile(digest), "w"), table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return digest.hexdigest()


class _HashingFile:
    """A writable file that stores nothing: it adds what is written to a digest."""

    closed = False

    def __init__(self, digest: Any) -> None:
        self._digest, self._size = digest, 0

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
