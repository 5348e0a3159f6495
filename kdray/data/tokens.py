"""Token ids: all splits are tokenised once and stored as Arrow files, cached by content.

This module imports nothing that loads raw data, so that a worker starts quickly. `splits` checks the rows, `rows` reads
the files.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from kdray.data.column_files import ColumnFiles
from kdray.data.masked_rows import MaskedRows
from kdray.data.masking import Masking
from kdray.data.rows import SPLITS, TRAIN, Layout, Rows
from kdray.data.task_data import Encoded, TaskData
from kdray.errors import DataError, TeacherError
from kdray.storage.files import file_fingerprint, fingerprint, replace_folder, write_json
from kdray.storage.mirror import fetch
from kdray.storage.paths import StoragePaths

logger = logging.getLogger(__name__)

FORMAT = 1
"""Part of every key: increase it when the files change, so that older files are not read."""

ENCODED_AT_ONCE = 2000
"""Rows in one call of the tokenizer, and the most rows that are in memory as Python lists.

A fast tokenizer divides the texts of a call among all cores, unless TOKENIZERS_PARALLELISM is set to false."""

CHARACTERS_AT_ONCE = 8_000_000
"""The most characters (of texts that are divided: words) in one call, unless a single row has more: of long documents,
2,000 would be gigabytes of ids."""

SAMPLE = 16
"""Rows of each split that are encoded again to check cached token ids."""

ROW_COLUMNS = ("id", "label", "length", "place", "begins")
"""The columns of a token file that are not inputs of the model."""


class TextBlocks(Protocol):
    """The rows to tokenise, such as `kdray.data.splits.Splits`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels in the order of their numbers."""
        ...

    @property
    def key(self) -> str:
        """A fingerprint of all rows and labels."""
        ...

    @property
    def more_key(self) -> str | None:
        """A fingerprint of the blocks of train behind the first one; None: there are none."""
        ...

    def blocks(self, split: str) -> Iterator[Mapping[str, Any]]:
        """The columns id, text, pair (for pairs of texts) and label of each block of a split; each can be sliced.

        The first block has the labelled rows. Only train has further ones: the texts without labels, which may be none,
        then the first changed copy of all these texts, the second one, and so on.
        """
        ...


@dataclass(frozen=True)
class TokenSet:
    """The token ids of all splits, in a folder. A pickle of it is small: it has the path, not the ids."""

    folder: Path
    key: str
    """A fingerprint of the rows, the labels, the tokenizer and the maximum length."""
    labelled_key: str
    """The same for the labelled rows alone: the fine-tuning of a teacher depends on nothing else."""
    labels: tuple[str, ...]
    layout: Layout
    tokenizer_key: str
    train_ends: tuple[int, ...]
    """The number of encoded rows of train up to the end of each block: the labelled rows, all texts, then with one
    copy of each of them, with two, ..."""

    def rows(self, split: str) -> Rows:
        """The labelled rows of one split, memory-mapped."""
        rows = self.all_rows(split)
        return rows if split != TRAIN else rows.first(self.train_ends[0])

    def all_rows(self, split: str) -> Rows:
        """All rows of one split, memory-mapped: for train with the texts without labels and all copies."""
        kind = MaskedRows if self.is_masked_anew(split) else Rows
        return kind(fetch(self.folder) / f"{split}.arrow", self.layout)

    def is_masked_anew(self, split: str) -> bool:
        """Whether the rows of this split have other masks in each pass, so that no answers to them can be stored."""
        return split == TRAIN and self.layout.masking is not None

    @property
    def stored_splits(self) -> tuple[str, ...]:
        """The splits to whose rows the answers of a teacher are stored."""
        return tuple(split for split in SPLITS if not self.is_masked_anew(split))

    def unchanged_blocks(self, split: str) -> list[Rows]:
        """The labelled rows of a split, and for train the texts without labels; copies are left out."""
        if split != TRAIN:
            return [self.rows(split)]
        return [self.rows(split), self.all_rows(split).part(*self.train_ends[:2])]

    def texts(self, copies: int = 0) -> int:
        """The number of encoded rows that a student learns from: all texts, and so many copies of each."""
        return self.train_ends[1 + copies]

    def epoch_rows(self, copies: int = 0) -> int:
        """The number of them that make an epoch: each text once, also where it stands there with several masks."""
        return -(-self.texts(copies) // self.layout.repeats)

    def check_tokenizer(self, tokenizer: Any, owner: str) -> None:
        """Raise TeacherError if this tokenizer gives other ids; `owner` is the model that it belongs to."""
        if tokenizer_key(tokenizer) != self.tokenizer_key:
            raise TeacherError(
                f"{owner}: its tokenizer is not the one that made the token ids in {self.folder}, so the model would "
                f"read wrong words. Tokenise the data with its own tokenizer."
            )


def tokenise(text: TextBlocks, task: TaskData, tokenizer: Any, paths: StoragePaths) -> TokenSet:
    """The token ids of this text: read from the storage's cache, or made if they are missing or damaged there.

    The cache key is the content: rows, labels, tokenizer, maximum length. Raises SpecError if the task cannot use the
    tokenizer, DataError if the texts of a split have nothing to answer.
    """
    own_key = tokenizer_key(tokenizer)
    labelled_key = fingerprint(FORMAT, *task.cache_key, task.max_length, text.key, own_key)
    key = labelled_key if text.more_key is None else fingerprint(labelled_key, text.more_key)
    folder = fetch(paths.tokens(key))
    cached = _read(folder, key, labelled_key)
    # The key covers the tokenizer's data, but not its code: another version may make other ids of the same data.
    if (
        cached
        and cached.tokenizer_key == own_key
        and all(_gives_same_ids(cached, split, text, task, tokenizer) for split in SPLITS)
    ):
        return cached
    if folder.exists():
        logger.warning("%s: incomplete, or made by another version of the tokenizer; made again.", folder)
    encode = partial(_pieces, task=task, tokenizer=tokenizer, labels=len(text.labels))
    of_task = task.layout(tokenizer)
    with replace_folder(folder) as temporary:
        rows_of_blocks = {
            split: _write(temporary / f"{split}.arrow", text.blocks(split), partial(encode, split=split))
            for split in SPLITS
        }
        train_ends = _train_ends(rows_of_blocks[TRAIN])
        padding = {name: _padding_value(tokenizer, name) for name in _inputs_in(temporary / f"{TRAIN}.arrow")}
        for split in SPLITS:
            _check_answers(split, Rows(temporary / f"{split}.arrow", Layout(padding, task.max_length)))
        write_json(
            temporary / "meta.json",
            {
                "files": {split: file_fingerprint(temporary / f"{split}.arrow") for split in SPLITS},
                "labels": text.labels,
                "padding": padding,
                "max_length": task.max_length,
                **({"task": _as_json(of_task)} if of_task else {}),
                "tokenizer": own_key,
                "train_ends": train_ends,
            },
        )
    return TokenSet(
        folder=folder,
        key=key,
        labelled_key=labelled_key,
        labels=text.labels,
        layout=Layout(padding, task.max_length, text.labels, **of_task),
        tokenizer_key=own_key,
        train_ends=train_ends,
    )


def tokenizer_key(tokenizer: Any) -> str:
    """A fingerprint of everything that decides the ids: vocabulary, merges, normalisation, special tokens.

    It depends neither on the place that the tokenizer was loaded from nor on the arguments of its last call.
    """
    special_tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    if not getattr(tokenizer, "is_fast", False):
        return fingerprint(type(tokenizer).__name__, tokenizer.get_vocab(), special_tokens, tokenizer.model_input_names)
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # A call with truncation or padding stores both in the tokenizer.
    rules = {name: rule for name, rule in rules.items() if name not in ("truncation", "padding")}
    return fingerprint(rules, special_tokens, tokenizer.model_input_names)


def _train_ends(rows_of_blocks: Sequence[int]) -> tuple[int, ...]:
    """`TokenSet.train_ends`: without texts that have no labels, all texts end where the labelled rows end."""
    ends = tuple(accumulate(rows_of_blocks))
    return ends if len(ends) > 1 else (*ends, *ends)


def _check_answers(split: str, rows: Rows) -> None:
    """Raise DataError for a split on which nothing can be measured."""
    if not rows.answer_starts[-1]:
        raise DataError(f"{split}: none of its {len(rows)} texts has a token to answer. Give it longer texts.")


def _write(
    file: Path, blocks: Iterator[Mapping[str, Any]], encode: Callable[[Mapping[str, Any]], Iterator[pa.RecordBatch]]
) -> list[int]:
    """Write the token file of one split, and return the number of encoded rows of each block."""
    with TemporaryDirectory(dir=file.parent) as name:
        columns, ends = ColumnFiles(Path(name)), [0]
        for block in blocks:
            for piece in encode(block):
                columns.append(piece)
            ends.append(columns.rows)
        columns.write(file)
    return np.diff(ends).tolist()


def _inputs_in(file: Path) -> list[str]:
    """The inputs of the model in a token file."""
    return [name for name in pa.ipc.open_file(file).schema.names if name not in ROW_COLUMNS]


def _pieces(
    columns: Mapping[str, Any], task: TaskData, tokenizer: Any, labels: int, split: str
) -> Iterator[pa.RecordBatch]:
    """The rows of a block, encoded, a piece at a time: the columns of a token file."""
    for start in range(0, len(columns["id"]), ENCODED_AT_ONCE):
        rows = {name: columns[name][start : start + ENCODED_AT_ONCE] for name in columns}
        texts = [rows[name] for name in ("text", "pair") if name in rows]
        for part in _parts([sum(map(len, row)) for row in zip(*texts, strict=True)]):
            piece = {name: column[part] for name, column in rows.items()}
            yield _record_batch(piece, _encode(piece, task, tokenizer, split), labels)


def _parts(characters: Sequence[int]) -> Iterator[slice]:
    """Divide rows with so many characters into parts with at most `CHARACTERS_AT_ONCE`, of at least one row."""
    start, total = 0, 0
    for row, count in enumerate(characters):
        if row > start and total + count > CHARACTERS_AT_ONCE:
            yield slice(start, row)
            start, total = row, 0
        total += count
    yield slice(start, len(characters))


def _encode(columns: Mapping[str, Any], task: TaskData, tokenizer: Any, split: str) -> Encoded:
    texts = {name: list(columns[name]) for name in ("text", "pair") if name in columns}
    return task.encode(tokenizer, texts, split == TRAIN)


def _record_batch(columns: Mapping[str, Any], encoded: Encoded, labels: int) -> pa.RecordBatch:
    """The columns id, label, length and place, and a column of lists for each input of the model.

    There is one row for each encoded row. Without places there is no column place.
    """
    ids = np.asarray(columns["id"], np.int64)[_row_numbers(encoded)]
    lengths = np.array([*map(len, encoded.inputs["input_ids"])], np.int32)
    # The other inputs are masks and token types, which fit into a byte.
    inputs = {
        name: _lists(lists, np.int32 if name == "input_ids" else np.int8) for name, lists in encoded.inputs.items()
    }
    if encoded.places is None:
        label = _gold_column(columns["label"], labels)
        return pa.record_batch({"id": ids, "label": label, "length": lengths, **inputs})
    # Every answer of a row is in exactly one of its parts, and the parts are in order, so the gold is in order, too.
    offsets = np.cumsum([0, *map(len, encoded.places)])
    gold = columns["label"] if encoded.gold is None else encoded.gold
    label = pa.LargeListArray.from_arrays(offsets, _numbers(gold, np.int32))
    more = {} if encoded.begins is None else {"begins": _lists(encoded.begins, np.int8)}
    places = _lists(encoded.places, np.int32)
    return pa.record_batch({"id": ids, "length": lengths, "label": label, "place": places, **more, **inputs})


def _row_numbers(encoded: Encoded) -> np.ndarray:
    """For each encoded row, the row that it is made of."""
    count = len(encoded.inputs["input_ids"])
    return np.arange(count) if encoded.rows is None else np.asarray(encoded.rows, np.int64)


def _lists(lists: Sequence[Sequence[int]], dtype: type[np.integer[Any]]) -> pa.LargeListArray:
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    return pa.LargeListArray.from_arrays(offsets, _numbers(lists, dtype))


def _numbers(lists: Iterable[Sequence[int]], dtype: type[np.integer[Any]]) -> np.ndarray:
    """The numbers of all lists, list after list."""
    return np.fromiter(chain.from_iterable(lists), dtype)


def _gold_column(cells: Sequence[Any], labels: int) -> np.ndarray | pa.FixedSizeListArray:
    """The gold of rows with one answer each: label numbers, numbers, or for each label whether it holds."""
    if labels and isinstance(cells[0], list | None):
        return _holds(cells, labels)
    return np.asarray(cells, np.float64 if isinstance(cells[0], float) else np.int32)


def _holds(cells: Sequence[Any], labels: int) -> pa.FixedSizeListArray:
    """For each label whether it holds: 1 or 0, or -1 in a row without gold."""
    holds_NxC = np.zeros((len(cells), labels), np.int8)
    for row, cell in enumerate(cells):
        if cell is None:
            holds_NxC[row] = -1
        else:
            holds_NxC[row, cell] = 1
    return pa.FixedSizeListArray.from_arrays(pa.array(holds_NxC.ravel()), labels)


def _padding_value(tokenizer: Any, name: str) -> int:
    """The padding value of this input; 0 if the tokenizer has none, because the attention mask hides padding."""
    value = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}.get(name)
    return int(value or 0)


def _as_json(of_task: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(value) if isinstance(value, Masking) else value for name, value in of_task.items()}


def _read(folder: Path, key: str, labelled_key: str) -> TokenSet | None:
    """The token set in this folder; None if a file is missing or is not as it was written."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if any(file_fingerprint(folder / f"{split}.arrow") != meta["files"][split] for split in SPLITS):
            return None
        of_task = meta.get("task", {})
        if masking := of_task.get("masking"):
            of_task["masking"] = Masking(**masking)
        layout = Layout(meta["padding"], meta["max_length"], tuple(meta["labels"]), **of_task)
        # Sets that were written before there were several blocks do not say where they end.
        ends = meta.get("train_ends") or _train_ends([len(Rows(folder / f"{TRAIN}.arrow", layout))])
        return TokenSet(
            folder=folder,
            key=key,
            labelled_key=labelled_key,
            labels=layout.labels,
            layout=layout,
            tokenizer_key=meta["tokenizer"],
            train_ends=tuple(ends),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _gives_same_ids(tokens: TokenSet, split: str, text: TextBlocks, task: TaskData, tokenizer: Any) -> bool:
    """Whether the tokenizer gives the cached ids for the first rows of a split."""
    rows = tokens.rows(split)
    columns = next(text.blocks(split))
    if len(np.unique(rows.ids)) != len(columns["id"]):
        return False
    first = {name: columns[name][:SAMPLE] for name in columns}
    expected = _encode(first, task, tokenizer, split).inputs["input_ids"]
    # As they are stored, also if they are masked when they are read.
    inputs = Rows(tokens.folder / f"{split}.arrow", tokens.layout).batch(np.arange(len(expected))).inputs
    cached = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
    return all(
        ids[is_token].tolist() == list(ids_now) for (ids, is_token), ids_now in zip(cached, expected, strict=True)
    )
