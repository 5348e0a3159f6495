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
from kdray.errors import TeacherError
from kdray.storage.files import file_fingerprint, fingerprint, replace_folder, write_json
from kdray.storage.mirror import fetch
from kdray.storage.paths import StoragePaths
from kdray.tasks.task import Task

logger = logging.getLogger(__name__)

FORMAT = 1
"""Part of every key: increase it when the files change, so that older files are not read."""

ENCODED_AT_ONCE = 2000
"""Rows in one call of the tokenizer."""

SAMPLE = 16
"""Rows of each split that are encoded again to check cached token ids."""

ROW_COLUMNS = ("id", "label", "length")
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


def tokenise(splits: LabelledText, task: Task, tokenizer: Any, paths: StoragePaths) -> TokenSet:
    """The token ids of these splits: read from the storage's cache, or made if they are missing or damaged there.

    The cache key is the content: rows, labels, tokenizer, maximum length. Raises SpecError if the task cannot use the
    tokenizer.
    """
    own_key = tokenizer_key(tokenizer)
    key = fingerprint(FORMAT, task.name, task.max_length, splits.key, own_key)
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
            table = _encode_split(splits.columns(split), task, tokenizer)
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
    layout = Layout(padding, task.max_length)
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


def _encode_split(columns: Mapping[str, Any], task: Task, tokenizer: Any) -> pa.Table:
    """The columns id, label and length, and a column of lists for each input of the model, in one chunk each."""
    row_count = len(columns["id"])
    parts: dict[str, list[np.ndarray]] = {}
    lengths = np.empty(row_count, np.int32)
    for start in range(0, row_count, ENCODED_AT_ONCE):
        for name, lists in _encode(columns, slice(start, start + ENCODED_AT_ONCE), task, tokenizer).items():
            # The other inputs are masks and token types, which fit into a byte.
            dtype = np.int32 if name == "input_ids" else np.int8
            parts.setdefault(name, []).append(np.concatenate([np.asarray(ids, dtype) for ids in lists]))
            lengths[start : start + len(lists)] = [len(ids) for ids in lists]
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    inputs = {name: pa.LargeListArray.from_arrays(offsets, np.concatenate(part)) for name, part in parts.items()}
    labels = np.asarray(columns["label"][:], np.int32)
    return pa.table({"id": np.asarray(columns["id"][:], np.int64), "label": labels, "length": lengths, **inputs})


def _encode(columns: Mapping[str, Any], rows: slice, task: Task, tokenizer: Any) -> dict[str, list[list[int]]]:
    pairs = list(columns["pair"][rows]) if "pair" in columns else None
    return task.encode(tokenizer, list(columns["text"][rows]), pairs)


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
            layout=Layout(meta["padding"], meta["max_length"]),
            tokenizer_key=meta["tokenizer"],
        )
    except (OSError, ValueError, KeyError):
        return None


def _gives_same_ids(tokens: TokenSet, split: str, splits: LabelledText, task: Task, tokenizer: Any) -> bool:
    """Whether the tokenizer gives the cached ids for the first rows of a split."""
    rows = tokens.rows(split)
    columns = splits.columns(split)
    if len(rows) != len(columns["id"]):
        return False
    expected: Sequence[list[int]] = _encode(columns, slice(0, SAMPLE), task, tokenizer)["input_ids"]
    inputs = rows.batch(np.arange(len(expected))).inputs
    cached = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
    return all(ids[is_token].tolist() == ids_now for (ids, is_token), ids_now in zip(cached, expected, strict=True))
