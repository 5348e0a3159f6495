"""The rows of a sweep: read, checked cell by cell, and divided into train, validation and test.

Data that no model could learn from are refused here. `sources` reads files and formats, `cells` checks single cells,
`tokens` makes token ids.

A source has splits with names of its own. A split of the source has a role in the sweep: train, validation or test.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from kdray.data.cuts import cut_split, draw_rows
from kdray.data.findings import describe_findings
from kdray.data.gold import UNLABELLED, first_row_with, only_gold, rows_of_labels, with_names
from kdray.data.rows import TEST, TRAIN, VALIDATION
from kdray.data.task_data import CheckedTable, LabelOrder, TaskData
from kdray.data.unlabelled import NameOrUnlabelled, draw_texts, read_unlabelled, usable_texts, without_gold
from kdray.errors import DataError, did_you_mean
from kdray.settings import later_field
from kdray.sources.data_files import READABLE
from kdray.sources.generated.generators import NameOrGenerator
from kdray.sources.opening import Source, open_source
from kdray.sources.reading import Reading
from kdray.sources.tables import short_list, short_repr
from kdray.storage.files import fingerprint

ALIASES = {VALIDATION: (VALIDATION, "dev", "valid", "val"), TEST: (TEST,)}
"""The roles whose rows are cut from train if the source has no split for them, and the usual names of such a split."""


class Data(Reading):
    """Where the rows come from, and how they are divided into splits."""

    source: NameOrGenerator
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
    """The seed of the cuts from train and of the rows that `max_rows`, `max_labelled` and `max_unlabelled` draw."""
    unlabelled: NameOrUnlabelled | None = later_field(None)
    """Texts without labels, from which the students learn by the teacher's answers: a split of the source, such as
    `unsupervised`, or the name or the settings of another source."""
    keep_unlabelled: bool | None = later_field(None)
    """Whether rows of train whose label is empty are such texts, too. None: if `unlabelled` is given; otherwise they
    are left out, with a note."""
    max_labelled: int | None = later_field(None, ge=2)
    """The maximum number of rows of train that keep their label, drawn so that the shares of the labels stay. The other
    rows are texts without labels, unless `keep_unlabelled` is false. It shows how far few labels come."""
    max_unlabelled: int | None = later_field(None, ge=1)
    """The maximum number of texts without labels, drawn at random. `max_rows` limits them, too."""

    @property
    def keeps_unlabelled(self) -> bool:
        """Whether rows of train without a label are used."""
        return self.unlabelled is not None if self.keep_unlabelled is None else self.keep_unlabelled


@dataclass(frozen=True)
class Splits:
    """Checked rows with the columns id (row number in the split as read), text, pair (for pairs of texts) and label.

    A text is a list of words for a task that answers for each word; a label is the number of a label, a list of such
    numbers, or a number (see `gold`).
    """

    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    labels: tuple[str, ...]
    """The names of the labels; a name's index is its number in the column label. Empty for a task without labels."""
    notes: tuple[str, ...]
    """One sentence for everything that was done although no setting requests it."""
    key: str
    """A fingerprint of all labelled rows and labels."""
    more_key: str | None = None
    """A fingerprint of the texts without labels."""
    unlabelled: datasets.Dataset | None = None
    """Texts without labels, with the columns of the other splits; their ids follow those of train. None: no texts."""

    def columns(self, split: str) -> dict[str, Sequence[Any]]:
        """Name -> column, of one split."""
        rows = {TRAIN: self.train, VALIDATION: self.validation, TEST: self.test}[split]
        return {name: rows[name] for name in rows.column_names}

    def blocks(self, split: str) -> Iterator[dict[str, Sequence[Any]]]:
        """The columns of a split; for train also those of the texts without labels. See `tokens.TextBlocks`."""
        yield self.columns(split)
        if split == TRAIN and self.unlabelled is not None:
            yield {name: self.unlabelled[name] for name in self.unlabelled.column_names}

    @property
    def text_key(self) -> str:
        """A fingerprint of all rows, labelled or not: of everything that the trials of a sweep have in common."""
        return self.key if self.more_key is None else fingerprint(self.key, self.more_key)

    def content(self, split: str) -> str:
        """A fingerprint of the texts and label names of one split; it does not depend on the other splits."""
        columns = self.columns(split)
        labels = with_names(columns["label"], self.labels)
        return fingerprint(labels, {name: list(columns[name]) for name in ("text", "pair") if name in columns})


def load_splits(data: Data, task: TaskData) -> Splits:
    """Load, check and divide the rows of a sweep.

    Raises DataError if something cannot be read, or if a model cannot learn from it: the message names the file, the
    row and the column.
    """
    source = open_source(data.source, data, data.config, data.revision)
    checked, order, notes = _read_tables(source, data, task)
    labels = order.labels
    rows: dict[str, pa.Table] = {}
    texts_only = [] if data.unlabelled is None else read_unlabelled(data.unlabelled, task, source, data)
    for role, parts in checked.items():  # train comes first: the other splits are compared with it
        rows[role], without_label = _join_tables(parts, order)
        if without_label.num_rows and role == TRAIN and data.keeps_unlabelled:
            texts_only.append(without_label)
        elif without_label.num_rows:
            notes.append(_left_out(parts, without_label))
        _check_answers(rows[role], labels, role, parts)
        _check_labels(rows[role], order, rows[TRAIN], parts)
        if role != TRAIN:
            notes += task.describe_gold(parts, checked[TRAIN], order)
    _cut_missing_splits(rows, data, labels, source.where, notes)
    if data.max_labelled is not None:
        rows[TRAIN], others = draw_rows(rows[TRAIN], data.max_labelled, data.seed)
        if others.num_rows and data.keep_unlabelled is not False:
            texts_only.append(others.drop_columns(["id", "label"]))
    if data.max_rows:
        rows = {role: draw_rows(table, data.max_rows, data.seed)[0] for role, table in rows.items()}
    notes += describe_findings({role: rows[role] for role in (TRAIN, VALIDATION, TEST)}, labels)
    unlabelled = _unlabelled_rows(texts_only, rows, data, notes)
    # Arrow keeps the memory of the tables that the columns above were made of: hundreds of MB for a million texts.
    pa.default_memory_pool().release_unused()
    return Splits(
        train=as_dataset(rows[TRAIN]),
        validation=as_dataset(rows[VALIDATION]),
        test=as_dataset(rows[TEST]),
        labels=labels,
        notes=tuple(notes),
        key=fingerprint(labels, {role: _content_digest(table) for role, table in rows.items()}),
        unlabelled=None if unlabelled is None else as_dataset(unlabelled),
        more_key=None if unlabelled is None else _content_digest(unlabelled),
    )


def as_dataset(table: pa.Table) -> datasets.Dataset:
    """These rows as a `Dataset`, without a copy of them."""
    # Without a fingerprint, `datasets` would make one of a pickle of the whole table, in memory.
    return datasets.Dataset(table, fingerprint=uuid4().hex)


def _unlabelled_rows(
    texts: Sequence[pa.Table], rows: Mapping[str, pa.Table], data: Data, notes: list[str]
) -> pa.Table | None:
    """The texts without labels that can be used, as rows whose ids follow those of train; None without texts."""
    if not texts:
        return None
    table = usable_texts(texts, {role: rows[role] for role in (VALIDATION, TEST)}, notes)
    limits = [limit for limit in (data.max_rows, data.max_unlabelled) if limit is not None]
    table = draw_texts(table, min([table.num_rows, *limits]), data.seed)
    return without_gold(table, rows[TRAIN]["label"].type, pc.max(rows[TRAIN]["id"]).as_py() + 1)


def _read_tables(
    source: Source, data: Data, task: TaskData
) -> tuple[dict[str, list[CheckedTable]], LabelOrder, list[str]]:
    """The checked tables of each role, without a test split that has no labels; the labels; and notes."""
    roles = _find_splits(source, data)
    tables = {role: [table for split in splits for table in source.read(split)] for role, splits in roles.items()}
    class_names = next((names for table in tables[TRAIN] if (names := task.class_names(table))), None)
    # Only a test split may lack the gold.
    checked = {
        role: [task.read(table, class_names, role == TEST, role == TRAIN and data.keeps_unlabelled) for table in some]
        for role, some in tables.items()
    }
    order = task.order_labels(checked[TRAIN], class_names)
    notes = [*(note for some in tables.values() for table in some for note in table.notes), *order.notes]
    notes += [note for parts in checked.values() for part in parts for note in part.notes]
    if TEST in checked and _is_unlabelled(checked[TEST], checked[TRAIN], order.numbers):
        # Test splits of public benchmarks often come without labels, or with -1 everywhere.
        notes.append(f"{checked[TEST][0].where}: its rows have no labels, so it is not used.")
        del checked[TEST]
    return checked, order, notes


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


def _is_unlabelled(test: list[CheckedTable], train: list[CheckedTable], numbers: Mapping[str, int]) -> bool:
    """Whether no row of the test split has gold: no such column, or only empty cells and -1.

    If train has -1, then -1 is a label or a number like any other.
    """
    may_be_minus_one = str(UNLABELLED) in numbers or any(part.gold and part.gold.has_minus_one for part in train)
    has_rows = any(len(part.texts) for part in test)  # a split without rows is an error, not an unlabelled split
    return has_rows and all(part.gold is None or part.gold.is_hidden(may_be_minus_one) for part in test)


def _join_tables(parts: list[CheckedTable], order: LabelOrder) -> tuple[pa.Table, pa.Table]:
    """One table of the rows of a split that have gold, and the texts of those that have none."""
    gold = [_numbered_gold(part, order) for part in parts]
    is_missing = np.concatenate([missing for _, missing in gold])
    columns = {"id": pa.array(np.arange(len(is_missing))), "text": pa.chunked_array([part.texts for part in parts])}
    if parts[0].pairs is not None:
        columns["pair"] = pa.chunked_array([part.pairs for part in parts])
    table = pa.table({**columns, "label": pa.chunked_array([labels for labels, _ in gold])})
    if not is_missing.any():
        return table, table.slice(0, 0)
    return table.filter(pa.array(~is_missing)), table.filter(pa.array(is_missing)).drop_columns(["id", "label"])


def _left_out(parts: list[CheckedTable], without_label: pa.Table) -> str:
    count = sum(len(part.texts) for part in parts)
    return f"{parts[0].where}: {without_label.num_rows} of {count} rows have no label and are left out."


def _numbered_gold(part: CheckedTable, order: LabelOrder) -> tuple[pa.Array, np.ndarray]:
    """The column `label` of one table, and which rows have no gold. Raises DataError for a label without a number."""
    if part.gold is None:
        raise DataError(f"{part.where}: no label column, but other files of this split have one.")
    if unknown := part.gold.unknown(order.numbers):
        row, name = unknown
        where = f"{part.where}, row {row + 1}: label {short_repr(name)}"
        if not set(order.numbers) <= set(order.labels):
            # The labels are names that the user gives to the numbers 0, 1, ... in the data.
            raise DataError(
                f"{where} has no name: task.labels has {len(order.labels)}, for the numbers 0 to "
                f"{len(order.labels) - 1}. Correct the row, or name every number."
            )
        raise DataError(
            f"{where} is neither in task.labels nor in train, which has {short_list(list(order.numbers))}. Correct the "
            "row, or name every label in task.labels."
        )
    return part.gold.numbered(order.numbers), part.gold.missing(order.numbers)


def _check_answers(table: pa.Table, labels: Sequence[str], role: str, parts: list[CheckedTable]) -> None:
    """Raise DataError if a split is empty, or has one answer only. A test split of one answer is accepted."""
    where = parts[0].where
    if table.num_rows == 0:
        count = sum(len(part.texts) for part in parts)
        problem = f"none of its {count} rows has a label (task.label)" if count else "the split has no rows"
        needed = "rows" if pa.types.is_null(table["label"].type) else "labelled rows"
        raise DataError(
            f"{where}: {problem}. Give a split with {needed}; or leave it out, and kdray cuts it from train."
        )
    if role != TEST and (only := only_gold(table, labels)):
        raise DataError(f"{where}: {only}; at least two are needed. Check the label column (task.label).")


def _check_labels(table: pa.Table, order: LabelOrder, train: pa.Table, parts: list[CheckedTable]) -> None:
    """Raise DataError if a split has a label that train does not have."""
    labels = order.labels
    if not labels:
        return
    counts, counts_in_train = (rows_of_labels(each["label"], len(labels)) for each in (table, train))
    may_be_new = np.array([name in order.may_be_new for name in labels])
    unseen = np.flatnonzero((counts > 0) & (counts_in_train == 0) & ~may_be_new)
    if not len(unseen):
        return
    # The id is the row number in all files of the split together; the message needs the row in its own file.
    row, part = table["id"][first_row_with(table["label"], int(unseen[0]))].as_py(), 0
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
            by = "by label" if labels else "at random" if pa.types.is_null(rows[role]["label"].type) else "by value"
            notes.append(f"{where}: {rows[role].num_rows} rows were cut from train for {role}, {by}.")


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
