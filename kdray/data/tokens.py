"""Token ids: all splits are tokenised once and stored as Arrow files, cached by content.

This module imports nothing that loads raw data, so that a worker starts quickly. `splits` checks the rows, `rows` reads
the files.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from kdray.data.rows import SPLITS, Layout, Rows
from kdray.data.task_data import Encoded, TaskData
from kdray.errors import TeacherError
from kdray.storage.files import file_fingerprint, fingerprint, replace_folder, write_json
from kdray.storage.mirror import fetch
from kdray.storage.paths import StoragePaths

logger = logging.getLogger(__name__)

FORMAT = 1
"""Part of every key: increase it when the files change, so that older files are not read."""

ENCODED_AT_ONCE = 2000
"""Rows in one call of the tokenizer."""

SAMPLE = 16
"""Rows of each split that are encoded again to check cached token ids."""

ROW_COLUMNS = ("id", "label", "length", "place")
"""The columns of a token file that are not inputs of the model."""


class LabelledText(Protocol):
    """The rows to tokenise, such as `kdray.data.splits.Splits`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels in the order of their numbers."""
        ...

    @property
    def key(self) -> str:
        """A fingerprint of all rows and labels."""
        ...

    def columns(self, split: str) -> Mapping[str, Any]:
        """The columns id, text, pair (for pairs of texts) and label; each can be sliced."""
        ...


@dataclass(frozen=True)
class TokenSet:
    """The token ids of all splits, in a folder. A pickle of it is small: it has the path, not the ids."""

    folder: Path
    key: str
    """A fingerprint of the rows, the labels, the tokenizer and the maximum length."""
    labels: tuple[str, ...]
    layout: Layout
    tokenizer_key: str

    def rows(self, split: str) -> Rows:
        """One split, memory-mapped."""
        return Rows(fetch(self.folder) / f"{split}.arrow", self.layout)

    def check_tokenizer(self, tokenizer: Any, owner: str) -> None:
        """Raise TeacherError if this tokenizer gives other ids; `owner` is the model that it belongs to."""
        if tokenizer_key(tokenizer) != self.tokenizer_key:
            raise TeacherError(
                f"{owner}: its tokenizer is not the one that made the token ids in {self.folder}, so the model would "
                f"read wrong words. Tokenise the data with its own tokenizer."
            )


def tokenise(splits: LabelledText, task: TaskData, tokenizer: Any, paths: StoragePaths) -> TokenSet:
    """The token ids of these splits: read from the storage's cache, or made if they are missing or damaged there.

    The cache key is the content: rows, labels, tokenizer, maximum length. Raises SpecError if the task cannot use the
    tokenizer.
    """
    own_key = tokenizer_key(tokenizer)
    key = fingerprint(FORMAT, *task.cache_key, task.max_length, splits.key, own_key)
    folder = fetch(paths.tokens(key))
    cached = _read(folder, key)
    # The key covers the tokenizer's data, but not its code: another version may make other ids of the same data.
    if (
        cached
        and cached.tokenizer_key == own_key
        and all(_gives_same_ids(cached, split, splits, task, tokenizer) for split in SPLITS)
    ):
        return cached
    if folder.exists():
        logger.warning("%s: incomplete, or made by another version of the tokenizer; made again.", folder)
    with replace_folder(folder) as temporary:
        padding: dict[str, int] = {}
        for split in SPLITS:
            table = _encode_split(splits.columns(split), len(splits.labels), task, tokenizer)
            inputs = [name for name in table.column_names if name not in ROW_COLUMNS]
            padding = {name: _padding_value(tokenizer, name) for name in inputs}
            _write(temporary / f"{split}.arrow", table)
        write_json(
            temporary / "meta.json",
            {
                "files": {split: file_fingerprint(temporary / f"{split}.arrow") for split in SPLITS},
                "labels": splits.labels,
                "padding": padding,
                "max_length": task.max_length,
                "tokenizer": own_key,
            },
        )
    layout = Layout(padding, task.max_length, splits.labels)
    return TokenSet(folder=folder, key=key, labels=splits.labels, layout=layout, tokenizer_key=own_key)


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


def _encode_split(columns: Mapping[str, Any], labels: int, task: TaskData, tokenizer: Any) -> pa.Table:
    """The columns id, label, length and place, and a column of lists for each input of the model.

    There is one row for each encoded row, and one chunk for each column. Without places there is no column place.
    """
    parts = [
        _encode(columns, slice(start, start + ENCODED_AT_ONCE), task, tokenizer)
        for start in range(0, len(columns["id"]), ENCODED_AT_ONCE)
    ]
    rows = np.concatenate([_row_numbers(part) + number * ENCODED_AT_ONCE for number, part in enumerate(parts)])
    lengths = np.array([len(ids) for part in parts for ids in part.inputs["input_ids"]], np.int32)
    # The other inputs are masks and token types, which fit into a byte.
    inputs = {
        name: _lists([ids for part in parts for ids in part.inputs[name]], np.int32 if name == "input_ids" else np.int8)
        for name in parts[0].inputs
    }
    columns_of_rows = {"id": np.asarray(columns["id"][:], np.int64)[rows], "length": lengths}
    if parts[0].places is None:
        label = _gold_column(columns["label"][:], labels)
        return pa.table({"id": columns_of_rows["id"], "label": label, "length": lengths, **inputs})
    places = [places for part in parts for places in part.places or ()]
    gold = np.concatenate([np.asarray(cell, np.int32) for cell in columns["label"][:]])
    # Every answer of a row is in exactly one of its parts, and the parts are in order, so the gold is in order, too.
    counts = np.cumsum([0, *map(len, places)])
    label = pa.LargeListArray.from_arrays(counts, gold)
    return pa.table({**columns_of_rows, "label": label, "place": _lists(places, np.int32), **inputs})


def _encode(columns: Mapping[str, Any], rows: slice, task: TaskData, tokenizer: Any) -> Encoded:
    return task.encode(tokenizer, {name: list(columns[name][rows]) for name in ("text", "pair") if name in columns})


def _row_numbers(encoded: Encoded) -> np.ndarray:
    """For each encoded row, the row that it is made of."""
    count = len(encoded.inputs["input_ids"])
    return np.arange(count) if encoded.rows is None else np.asarray(encoded.rows, np.int64)


def _lists(lists: Sequence[Sequence[int]], dtype: type[np.integer[Any]]) -> pa.LargeListArray:
    offsets = np.concatenate(([0], np.cumsum([len(values) for values in lists], dtype=np.int64)))
    return pa.LargeListArray.from_arrays(offsets, np.concatenate([np.asarray(values, dtype) for values in lists]))


def _gold_column(cells: Sequence[Any], labels: int) -> np.ndarray | pa.FixedSizeListArray:
    """The gold of rows with one answer each: label numbers, numbers, or for each label whether it holds."""
    if not isinstance(cells[0], list):
        return np.asarray(cells, np.float64 if isinstance(cells[0], float) else np.int32)
    holds_NxC = np.zeros((len(cells), labels), np.int8)
    for row, cell in enumerate(cells):
        holds_NxC[row, cell] = 1
    return pa.FixedSizeListArray.from_arrays(pa.array(holds_NxC.ravel()), labels)


def _padding_value(tokenizer: Any, name: str) -> int:
    """The padding value of this input; 0 if the tokenizer has none, because the attention mask hides padding."""
    value = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}.get(name)
    return int(value or 0)


def _write(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _read(folder: Path, key: str) -> TokenSet | None:
    """The token set in this folder; None if a file is missing or is not as it was written."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if any(file_fingerprint(folder / f"{split}.arrow") != meta["files"][split] for split in SPLITS):
            return None
        return TokenSet(
            folder=folder,
            key=key,
            labels=tuple(meta["labels"]),
            layout=Layout(meta["padding"], meta["max_length"], tuple(meta["labels"])),
            tokenizer_key=meta["tokenizer"],
        )
    except (OSError, ValueError, KeyError):
        return None


def _gives_same_ids(tokens: TokenSet, split: str, splits: LabelledText, task: TaskData, tokenizer: Any) -> bool:
    """Whether the tokenizer gives the cached ids for the first rows of a split."""
    rows = tokens.rows(split)
    columns = splits.columns(split)
    if len(np.unique(rows.ids)) != len(columns["id"]):
        return False
    expected = _encode(columns, slice(0, SAMPLE), task, tokenizer).inputs["input_ids"]
    inputs = rows.batch(np.arange(len(expected))).inputs
    cached = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
    return all(
        ids[is_token].tolist() == list(ids_now) for (ids, is_token), ids_now in zip(cached, expected, strict=True)
    )
