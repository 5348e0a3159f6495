"""The sweep's rows: found, read, checked cell by cell, and cut into train, validation and test.

Whatever a sweep could not learn from is refused here. Files and formats are read in `sources`; token ids and
batches are made in `tokens`.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from kdray.data.cells import UNLABELLED, LabelCells, label_column, short_repr, text_column
from kdray.data.generated import GeneratedReviews
from kdray.data.sources import Source, Table, open_source
from kdray.errors import DataError, did_you_mean
from kdray.settings import Names, Settings
from kdray.storage.files import fingerprint
from kdray.tasks.task import Task

TRAIN, VALIDATION, TEST = "train", "validation", "test"
ALIASES = {VALIDATION: (VALIDATION, "dev", "valid", "val"), TEST: (TEST,)}
"""The splits that are cut from train where they are missing, and what they may be called."""
WHOLE_NUMBER = re.compile(r"-?\d{1,18}")


class Data(Settings):
    """Where the rows come from, and how they are split."""

    source: str | GeneratedReviews
    """A Hugging Face dataset name, a local folder, a local file (csv, tsv, txt, json, jsonl, parquet), a generator."""
    config: str | None = None
    """Of a hub dataset with several configurations; of a local folder: the folder in it."""
    revision: str | None = None
    """Of a hub dataset: a commit hash pins it."""
    columns: Names = ()
    """The names of the columns of csv, tsv and txt files that have no header."""
    train: str = "train"
    validation: str | None = VALIDATION
    """The split to evaluate on (dev, valid and val are found too). None, or none there: cut from train."""
    test: str | None = TEST
    """The split that no choice sees. None, or none there, or one without labels: cut from train."""
    validation_fraction: float = Field(0.1, gt=0, lt=0.5)
    test_fraction: float = Field(0.1, gt=0, lt=0.5)
    max_rows: int | None = Field(None, ge=2)
    """At most so many rows of each split, drawn with the labels' shares; for --smoke."""
    seed: int = Field(0, ge=0)
    """Of the cuts and of `max_rows`."""


@dataclass(frozen=True)
class Splits:
    """Checked rows with the columns id (row number in what was read), text, pair (where there are pairs) and label."""

    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    labels: tuple[str, ...]
    """The name of each label's number."""
    notes: tuple[str, ...]
    """What was done without being asked: a sentence each."""
    key: str
    """A fingerprint of all rows and labels."""

    def columns(self, split: str) -> dict[str, Sequence[Any]]:
        """The columns of one split by name."""
        rows = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        return {name: rows[name] for name in rows.column_names}

    def content(self, split: str) -> str:
        """A fingerprint of the texts and label names of one split, whatever the others hold."""
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
    """None: it has no such column."""


def load_splits(data: Data, task: Task) -> Splits:
    """The rows of a sweep. Raises DataError for anything that cannot be read or learnt from: file, row, column."""
    source = open_source(data.source, data.config, data.revision, data.columns)
    tables = {role: source.read(split) for role, split in _roles(source, data).items()}
    named = next((t.class_names[task.label] for t in tables[TRAIN] if task.label in t.class_names), None)
    parts = {role: [_part(table, task, role, named) for table in some] for role, some in tables.items()}
    labels, numbers = _numbered(parts[TRAIN], task, named)
    notes: list[str] = []
    if TEST in parts and _unlabelled(parts[TEST], numbers):
        notes.append(f"{parts[TEST][0].where}: its rows have no labels, so it is not used.")
        del parts[TEST]
    rows: dict[str, pa.Table] = {}
    for role, some in parts.items():  # train comes first
        rows[role] = _rows(some, numbers, notes)
        _check(rows[role], labels, rows[TRAIN], role, some)
    for role, fraction in ((VALIDATION, data.validation_fraction), (TEST, data.test_fraction)):
        if role not in rows:
            rows[TRAIN], rows[role] = _cut(rows[TRAIN], fraction, data.seed, source.where, role)
            notes.append(f"{source.where}: {rows[role].num_rows} rows were cut from train for {role}, by label.")
    if data.max_rows:
        rows = {role: _drawn(table, data.max_rows, data.seed)[0] for role, table in rows.items()}
    made = {role: datasets.Dataset(table) for role, table in rows.items()}
    key = fingerprint(labels, {role: _content(table) for role, table in rows.items()})
    return Splits(made[TRAIN], made[VALIDATION], made[TEST], labels, tuple(notes), key)


def _roles(source: Source, data: Data) -> dict[str, str]:
    """The source's split for each role that has one. Raises DataError where one is missing or plays two roles."""
    wanted = {TRAIN: data.train, VALIDATION: data.validation, TEST: data.test}
    found = {role: _split(source, role, name) for role, name in wanted.items()}
    roles = {role: split for role, split in found.items() if split is not None}
    twice = [role for role in roles if list(roles.values()).count(roles[role]) > 1]
    if twice:
        raise DataError(
            f"{source.where}: {' and '.join(f'data.{role}' for role in twice)} name the same split "
            f"{roles[twice[0]]!r}, so what was learnt or chosen would be measured on the same rows. Name different "
            f"ones, or null to have one cut from train."
        )
    return roles


def _split(source: Source, role: str, wanted: str | None) -> str | None:
    """The source's split for this role; None when none was asked for, or only the usual one, and it is not there."""
    if wanted is None:
        return None
    usual = wanted == role and role in ALIASES
    split = next((name for name in (ALIASES[role] if usual else (wanted,)) if name in source.splits), None)
    if split is None and not usual:
        raise DataError(
            f"{source.where}: no split {wanted!r} (data.{role}); {did_you_mean(wanted, source.splits)} "
            f"A file is named for its split, such as {role}.csv; a single file may be given as data.source itself."
        )
    return split


def _part(table: Table, task: Task, role: str, class_names: Sequence[str] | None) -> CheckedTable:
    text = text_column(table, task.text, "task.text")
    pairs = text_column(table, task.pair, "task.pair") if task.pair else None
    if role == TEST and task.label not in table.columns:
        return CheckedTable(table.where, text, pairs, None)
    return CheckedTable(
        table.where, text, pairs, label_column(table, task.label, table.class_names.get(task.label, class_names))
    )


def _numbered(
    train: list[CheckedTable], task: Task, class_names: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The labels in order, and the number of each name that stands in the data. Raises DataError."""
    found = {name for part in train if part.labels for name in part.labels.names if name is not None}
    order = task.labels or class_names
    if order is None:
        whole = all(WHOLE_NUMBER.fullmatch(name) for name in found)
        order = sorted(found, key=lambda name: (int(name), name)) if whole else sorted(found)
    numbers = {name: number for number, name in enumerate(order)}
    if found <= {str(number) for number in range(len(order))} and not found <= set(order):
        numbers = {str(number): number for number in range(len(order))}  # task.labels names the data's numbers
    return tuple(order), numbers


def _unlabelled(test: list[CheckedTable], numbers: Mapping[str, int]) -> bool:
    """Whether no row has a label: no such column, or -1 everywhere where train has no -1."""
    unknown = {None} if str(UNLABELLED) in numbers else {None, str(UNLABELLED)}
    rows = any(len(part.texts) for part in test)
    return rows and all(part.labels is None or set(part.labels.names) <= unknown for part in test)


def _rows(parts: list[CheckedTable], numbers: Mapping[str, int], notes: list[str]) -> pa.Table:
    """One table of a split's rows. Rows without a label are left out, and a note says so."""
    numbered = np.concatenate([_numbers(part, numbers) for part in parts])
    columns = {"id": pa.array(np.arange(len(numbered))), "text": pa.chunked_array([part.texts for part in parts])}
    if parts[0].pairs is not None:
        columns["pair"] = pa.chunked_array([part.pairs for part in parts])
    table = pa.table({**columns, "label": pa.array(numbered)})
    without = int((numbered == UNLABELLED).sum())
    if not without:
        return table
    notes.append(f"{parts[0].where}: {without} of {len(numbered)} rows have no label and are left out.")
    return table.filter(pa.array(numbered != UNLABELLED))


def _numbers(part: CheckedTable, numbers: Mapping[str, int]) -> np.ndarray:
    """Each row's label as its number, -1 where there is none. Raises DataError for a name that has no number."""
    if part.labels is None:
        raise DataError(f"{part.where}: no label column, but other files of this split have one.")
    for code, name in enumerate(part.labels.names):
        if name is not None and name not in numbers:
            row = int(np.flatnonzero(part.labels.codes == code)[0])
            raise DataError(
                f"{part.where}, row {row + 1}: label {short_repr(name)} is neither in task.labels nor in train, which has "
                f"{', '.join(numbers)}. Mend the row, or name every label in task.labels."
            )
    known = [UNLABELLED if name is None else numbers[name] for name in part.labels.names]
    return np.array(known, np.int64)[part.labels.codes]


def _check(table: pa.Table, labels: Sequence[str], train: pa.Table, role: str, parts: list[CheckedTable]) -> None:
    """Raise DataError for a split that is empty, of one class, or with a label that train does not have."""
    where = parts[0].where
    if table.num_rows == 0:
        raise DataError(f"{where}: the split has no rows. Give a file with rows, or leave it away to have it cut.")
    present = np.unique(table["label"].to_numpy())
    if len(present) == 1 and role != TEST:
        raise DataError(
            f"{where}: all {table.num_rows} rows have the label {labels[present[0]]!r}; at least two are needed. "
            f"Check the label column (task.label)."
        )
    unseen = np.setdiff1d(present, train["label"].to_numpy())
    if len(unseen):
        first = int(np.flatnonzero(table["label"].to_numpy() == unseen[0])[0])
        row, part = table["id"][first].as_py(), 0
        while row >= len(parts[part].texts):
            row, part = row - len(parts[part].texts), part + 1
        raise DataError(
            f"{parts[part].where}, row {row + 1}: label {labels[unseen[0]]!r} does not occur in train, so it cannot "
            f"be learnt. Add such rows to train, or remove them here."
        )


def _cut(table: pa.Table, fraction: float, seed: int, where: str, role: str) -> tuple[pa.Table, pa.Table]:
    """What remains, and the part cut off, each with the labels' shares. Raises DataError if there is too little."""
    cut, rest = _drawn(table, round(fraction * table.num_rows), seed, leave=1)
    if len(pc.unique(cut["label"])) < 2:
        raise DataError(
            f"{where}: train's {table.num_rows} rows are too few to cut {fraction:.0%} off for {role} "
            f"(data.{role}_fraction). Give more rows, or a {role} split."
        )
    return rest, cut


def _drawn(table: pa.Table, count: int, seed: int, leave: int = 0) -> tuple[pa.Table, pa.Table]:
    """`count` rows with the labels' shares, drawn by seed, and the others; each in the order they came in.

    Of each label at least one row is drawn if `count` allows, and at least `leave` rows stay.
    """
    random = np.random.default_rng(seed)
    labels = table["label"].to_numpy()
    shuffled = random.permutation(len(labels))
    # A row's turn is where it stands among the rows of its label, in shares: the first of each label come first.
    turn = np.empty(len(labels))
    for label in np.unique(labels):
        own = shuffled[labels[shuffled] == label]
        turn[own] = np.arange(len(own)) / len(own)
        if leave:
            turn[own[len(own) - leave :]] = np.inf
    first = shuffled[np.argsort(turn[shuffled], kind="stable")][:count]
    drawn = np.zeros(len(labels), bool)
    drawn[first[np.isfinite(turn[first])]] = True
    return table.filter(pa.array(drawn)), table.filter(pa.array(~drawn))


def _content(table: pa.Table) -> str:
    """A fingerprint of the cells, whatever chunks they came in."""
    digest = hashlib.sha256()
    with pa.ipc.new_stream(pa.PythonFile(_Hashed(digest), "w"), table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return digest.hexdigest()


class _Hashed:
    """A file that only hashes what is written into it."""

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
