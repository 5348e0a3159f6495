"""What is odd about the rows of a sweep, as sentences: rows in two splits, contradictions, labels that look alike.

Nothing here changes the rows: people often have reasons, and a sweep must continue with the rows that it began with.
Rows that no measurement can be made with are refused.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdray.data.gold import gold_codes, rows_of_labels, with_names
from kdray.data.rows import TEST, TRAIN, VALIDATION
from kdray.errors import DataError
from kdray.sources.tables import short_list, short_repr

MISSING_WORDS = frozenset(("nan", "none", "null", "nil", "n/a", "na", "<na>", "#n/a", "-", "?", "undefined"))
"""What programs and people write for a value that is missing, in small letters."""
FEW_ROWS = 2
"""A label with so few rows is reported: it cannot be in train and in both other splits."""
CHANCE_ROWS = 20
"""A split with fewer rows may repeat rows of train by chance, so it is not refused."""
BLANK = r"\A[\s\p{Z}\p{C}]*\z"
"""A text in which a model reads nothing. \\p{C}: control and format characters, such as a zero-width space; \\p{Z}: all
kinds of spaces."""
_LISTED = 5
"""Labels that a sentence names; the others are counted."""


@dataclass(frozen=True)
class _Rows:
    """The rows of one split. Equal texts (or pairs of texts) have equal codes, also those of different splits."""

    role: str
    codes: np.ndarray
    gold: np.ndarray
    """Equal gold has equal codes."""
    counts: np.ndarray
    """The number of rows with each label."""
    table: pa.Table

    def example(self, row: int) -> str:
        """The text of a row, for a sentence."""
        text = self.table["text"][int(row)].as_py()
        return short_repr(text if isinstance(text, str) else " ".join(text))


def describe_findings(splits: Mapping[str, pa.Table], labels: Sequence[str]) -> list[str]:
    """One sentence for each kind of oddity, with its count and an example.

    `splits` are the rows of train, validation and test. Raises DataError for rows that make the results worthless: all
    texts are blank, all texts have contradictory labels, or all rows of a split stand in train.
    """
    rows = _with_codes(splits, len(labels))
    notes = [*_blank_texts(rows)]
    for split in (VALIDATION, TEST):
        notes += _rows_in_train(rows[TRAIN], rows[split])
    notes += _common_texts(rows[VALIDATION], rows[TEST])
    notes += _contradictions(rows[TRAIN], labels)
    notes += _duplicates(rows[TRAIN])
    notes += _similar_labels(labels)
    notes += _missing_words(labels)
    notes += _rare_labels(list(rows.values()), labels)
    notes += _labels_never_learnt(rows[TRAIN], labels)
    notes += [note for split in (VALIDATION, TEST) for note in _absent_labels(rows[split], rows[TRAIN], labels)]
    return notes


def _with_codes(splits: Mapping[str, pa.Table], labels: int) -> dict[str, _Rows]:
    texts = [_whole_texts(table) for table in splits.values()]
    joined = pa.concat_arrays([chunk for text in texts for chunk in text.chunks])
    codes = pc.dictionary_encode(joined).indices.to_numpy(zero_copy_only=False)
    gold = gold_codes(pa.chunked_array([chunk for table in splits.values() for chunk in table["label"].chunks]))
    ends = np.cumsum([table.num_rows for table in splits.values()])
    parts = zip(splits.items(), np.split(codes, ends[:-1]), np.split(gold, ends[:-1]), strict=True)
    return {
        role: _Rows(role, own_codes, own_gold, _count_labels(table, labels), table)
        for (role, table), own_codes, own_gold in parts
    }


def _count_labels(table: pa.Table, labels: int) -> np.ndarray:
    return rows_of_labels(table["label"], labels) if labels else np.zeros(0, np.int64)


def _whole_texts(table: pa.Table) -> pa.ChunkedArray:
    if pa.types.is_nested(table["text"].type):
        return pc.binary_join(table["text"], pa.scalar("\t", pa.large_string()))
    if "pair" not in table.column_names:
        return table["text"]
    # The length comes first: without it ("a", "bc") and ("ab", "c") would be one text.
    lengths = pc.utf8_length(table["text"]).cast(pa.large_string())
    return pc.binary_join_element_wise(lengths, table["text"], table["pair"], pa.scalar("\t", pa.large_string()))


def _blank_texts(rows: Mapping[str, _Rows]) -> Iterator[str]:
    """Texts of white space and control characters only: a model reads nothing in them."""
    for split in rows.values():
        blank = pc.match_substring_regex(_texts(split.table), BLANK).to_numpy(zero_copy_only=False)
        found = np.flatnonzero(blank)
        if len(found) == len(blank):
            raise DataError(f"{split.role}: none of its {len(blank)} texts has a letter or a sign. Check task.text.")
        if len(found):
            example = split.example(found[0])
            yield f"{split.role}: {len(found)} of {len(blank)} texts are blank, for example {example}; they are used."


def _texts(table: pa.Table) -> pa.ChunkedArray:
    """The first texts of the rows; the words of a text are joined."""
    text = table["text"]
    return pc.binary_join(text, pa.scalar(" ", pa.large_string())) if pa.types.is_nested(text.type) else text


def _rows_in_train(train: _Rows, split: _Rows) -> Iterator[str]:
    is_common = np.isin(split.codes, train.codes)
    count = int(is_common.sum())
    if not count:
        return
    described = f"{count} of {len(split.codes)} texts stand in train, too"
    same = np.isin(_text_and_label(split), _text_and_label(train))
    if same.all() and len(same) >= CHANCE_ROWS:
        raise DataError(
            f"{split.role}: all its {len(same)} rows stand in train, too, so a student would be measured on what it "
            f"has learnt. Give other rows for data.{split.role}, or null to cut some from train."
        )
    yield (
        f"{split.role}: {described}, for example {split.example(np.flatnonzero(is_common)[0])}; they are used, and "
        f"make its figures look better than for new texts."
    )


def _common_texts(validation: _Rows, test: _Rows) -> Iterator[str]:
    found = np.flatnonzero(np.isin(test.codes, validation.codes))
    if len(found):
        yield (
            f"test: {len(found)} of {len(test.codes)} texts stand in validation, too, for example "
            f"{test.example(found[0])}; they are used."
        )


def _contradictions(train: _Rows, labels: Sequence[str]) -> Iterator[str]:
    """Texts that occur with several labels, or with different lists of labels, or numbers."""
    pairs = np.unique(_text_and_label(train))
    texts, counts = np.unique(pairs // _GOLD, return_counts=True)
    contradictory = texts[counts > 1]
    if not len(contradictory):
        return
    is_affected = np.isin(train.codes, contradictory)
    if is_affected.all():
        raise DataError(
            f"train: each of its texts occurs with {_different_gold(train, labels)}, so nothing can be learnt. Check "
            "task.text and task.label."
        )
    first = int(np.flatnonzero(is_affected)[0])
    same_text = np.flatnonzero(train.codes == train.codes[first])
    _, different = np.unique(train.gold[same_text], return_index=True)
    cells = sorted(train.table["label"].take(pa.array(same_text[different])).to_pylist())
    names = [short_repr(name) for name in with_names(cells, labels)]
    yield (
        f"train: {len(contradictory)} texts occur with {_different_gold(train, labels)}, in {int(is_affected.sum())} "
        f"of {len(train.codes)} rows, for example {train.example(first)} with {short_list(names, _LISTED)}; they are "
        "used."
    )


def _different_gold(rows: _Rows, labels: Sequence[str]) -> str:
    """What several rows with the same text have."""
    if not labels:
        return "different numbers"
    if not pa.types.is_nested(rows.table["label"].type):
        return "several labels"
    return "different tags" if pa.types.is_nested(rows.table["text"].type) else "different labels"


def _duplicates(train: _Rows) -> Iterator[str]:
    _, first_rows = np.unique(_text_and_label(train), return_index=True)
    count = len(train.codes) - len(first_rows)
    if count:
        is_repeated = np.ones(len(train.codes), bool)
        is_repeated[first_rows] = False
        example = train.example(np.flatnonzero(is_repeated)[0])
        yield (
            f"train: {count} of {len(train.codes)} rows repeat an earlier row, for example {example}; they are used, "
            f"and count as often as they occur."
        )


def _similar_labels(labels: Sequence[str]) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(" ".join(unicodedata.normalize("NFKC", label).casefold().split()), []).append(label)
    alike = [group for group in groups.values() if len(group) > 1]
    if alike:
        yield (
            f"{len(alike)} groups of labels differ only in case, spaces or Unicode form, for example "
            f"{_list(alike[0])}; each is a label of its own. If they mean the same, write them the same."
        )


def _missing_words(labels: Sequence[str]) -> Iterator[str]:
    found = [label for label in labels if label.strip().casefold() in MISSING_WORDS]
    if found:
        yield (
            f"{len(found)} of {len(labels)} labels look like missing values: {_list(found)}; each is a label of its "
            f"own. If its rows have no label, remove them."
        )


def _rare_labels(splits: Sequence[_Rows], labels: Sequence[str]) -> Iterator[str]:
    counts = np.sum([split.counts for split in splits], axis=0)
    # A label of task.labels may have no rows; then nothing is wrong with the data.
    rare = [labels[number] for number, count in enumerate(counts) if 0 < count <= FEW_ROWS]
    if rare:
        yield (
            f"{len(rare)} of {len(labels)} labels have at most {FEW_ROWS} rows in all splits together: {_list(rare)}; "
            f"too few to learn or to measure. Give more rows, or merge the label with another one."
        )


def _labels_never_learnt(train: _Rows, labels: Sequence[str]) -> Iterator[str]:
    """Labels of a multi-label task that hold nowhere, such as a column of zeros."""
    column = train.table["label"].type
    if not pa.types.is_nested(column) or pa.types.is_nested(train.table["text"].type):
        return
    absent = [label for label, count in zip(labels, train.counts, strict=True) if not count]
    if absent:
        yield (
            f"train: {len(absent)} of {len(labels)} labels hold for no row: {_list(absent)}; no student can learn "
            "them, and each counts as F1 0 in macro F1."
        )


def _absent_labels(split: _Rows, train: _Rows, labels: Sequence[str]) -> Iterator[str]:
    # Tags that are nowhere in the data complete the types of spans, and are no oversight.
    is_expected = train.counts > 0 if pa.types.is_nested(split.table["text"].type) else np.ones(len(labels), bool)
    absent = [labels[number] for number in np.flatnonzero((split.counts == 0) & is_expected).tolist()]
    if absent:
        yield (
            f"{split.role}: {len(absent)} of {len(labels)} labels have no rows: {_list(absent)}; its figures say "
            f"nothing about them."
        )


_GOLD = 1 << 31
"""More than the number of rows: a factor that makes one number of a text's code and the code of its gold."""


def _text_and_label(rows: _Rows) -> np.ndarray:
    return rows.codes.astype(np.int64) * _GOLD + rows.gold


def _list(names: Sequence[str]) -> str:
    return short_list([repr(name) for name in names], _LISTED)
