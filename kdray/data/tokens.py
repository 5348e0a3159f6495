"""Token ids: written once as Arrow files, cached by content.

This module imports nothing that loads raw data, so that a worker starts quickly. `splits` checks what the rows say;
`rows` reads the files.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from kdray.data.rows import Layout, Rows
from kdray.errors import TeacherError
from kdray.storage.files import file_fingerprint, fingerprint, replace_folder, write_json
from kdray.storage.mirror import fetch
from kdray.storage.paths import StoragePaths
from kdray.tasks.task import Task

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")

FORMAT = 1
"""Goes into every key: raise it when what is written changes."""

ENCODED_AT_ONCE = 2000

SAMPLE = 16


class LabelledText(Protocol):
    """What is tokenised: `kdray.data.splits.Splits`."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def key(self) -> str: ...

    def columns(self, split: str) -> Mapping[str, Any]:
        """The columns id, text, pair (where there are pairs) and label, each to be sliced."""
        ...


@dataclass(frozen=True)
class TokenSet:
    """The token ids of all splits, in a folder; small to pickle."""

    folder: Path
    key: str
    labels: tuple[str, ...]
    layout: Layout
    tokenizer_key: str

    def rows(self, split: str) -> Rows:
        """One split, memory-mapped."""
        return Rows(fetch(self.folder) / f"{split}.arrow", self.layout)

    def check_tokenizer(self, tokenizer: Any, owner: str) -> None:
        """Raise TeacherError when this tokenizer would give other ids; `owner` names whose it is."""
        if tokenizer_key(tokenizer) != self.tokenizer_key:
            raise TeacherError(
                f"{owner}: its tokenizer is not the one that the token ids in {self.folder} were made with, so it "
                f"would read other words than were written. Tokenise the data with its own tokenizer."
            )


def tokenise(splits: LabelledText, task: Task, tokenizer: Any, paths: StoragePaths) -> TokenSet:
    """The token ids of these splits, from the storage's cache when they are there and sound.

    Cached by content: rows, labels, tokenizer, maximum length. Raises SpecError for a tokenizer that cannot be used.
    """
    own = tokenizer_key(tokenizer)
    key = fingerprint(FORMAT, task.name, task.max_length, splits.key, own)
    folder = fetch(paths.tokens(key))
    cached = _read(folder, key)
    if cached and cached.tokenizer_key == own and all(_same_ids(cached, s, splits, task, tokenizer) for s in SPLITS):
        return cached
    if folder.exists():
        logger.warning("%s: incomplete, or made by another version of the tokenizer; made anew.", folder)
    with replace_folder(folder) as temporary:
        padding: dict[str, int] = {}
        for split in SPLITS:
            table = _encoded(splits.columns(split), task, tokenizer)
            padding = {name: _padding(tokenizer, name) for name in table.column_names[3:]}
            _write(temporary / f"{split}.arrow", table)
        write_json(
            temporary / "meta.json",
            {
                "files": {split: file_fingerprint(temporary / f"{split}.arrow") for split in SPLITS},
                "labels": splits.labels,
                "padding": padding,
                "max_length": task.max_length,
                "tokenizer": own,
            },
        )
    return TokenSet(folder, key, splits.labels, Layout(padding, task.max_length), own)


def tokenizer_key(tokenizer: Any) -> str:
    """A fingerprint of all that decides the ids: vocabulary, merges, normalisation, special tokens.

    It does not depend on where the tokenizer was loaded from, nor on how it was last called.
    """
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    if not getattr(tokenizer, "is_fast", False):
        return fingerprint(type(tokenizer).__name__, tokenizer.get_vocab(), special, tokenizer.model_input_names)
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules = {name: rule for name, rule in rules.items() if name not in ("truncation", "padding")}
    return fingerprint(rules, special, tokenizer.model_input_names)


def _encoded(columns: Mapping[str, Any], task: Task, tokenizer: Any) -> pa.Table:
    """id, label, length and one list column an input, in one chunk each."""
    rows = len(columns["id"])
    parts: dict[str, list[np.ndarray]] = {}
    lengths = np.empty(rows, np.int32)
    for start in range(0, rows, ENCODED_AT_ONCE):
        for name, lists in _encode(columns, slice(start, start + ENCODED_AT_ONCE), task, tokenizer).items():
            kind = np.int32 if name == "input_ids" else np.int8
            parts.setdefault(name, []).append(np.concatenate([np.asarray(ids, kind) for ids in lists]))
            lengths[start : start + len(lists)] = [len(ids) for ids in lists]
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    inputs = {name: pa.LargeListArray.from_arrays(offsets, np.concatenate(part)) for name, part in parts.items()}
    labels = np.asarray(columns["label"][:], np.int32)
    return pa.table({"id": np.asarray(columns["id"][:], np.int64), "label": labels, "length": lengths, **inputs})


def _encode(columns: Mapping[str, Any], rows: slice, task: Task, tokenizer: Any) -> dict[str, list[list[int]]]:
    pairs = list(columns["pair"][rows]) if "pair" in columns else None
    return task.encode(tokenizer, list(columns["text"][rows]), pairs)


def _padding(tokenizer: Any, name: str) -> int:
    """What fills up the input of this name; 0 where the tokenizer says nothing, for the attention mask hides it."""
    value = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}.get(name)
    return int(value or 0)


def _write(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _read(folder: Path, key: str) -> TokenSet | None:
    """The token set in this folder; None unless every file is as it was written."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if any(file_fingerprint(folder / f"{split}.arrow") != meta["files"][split] for split in SPLITS):
            return None
        layout = Layout(meta["padding"], meta["max_length"])
        return TokenSet(folder, key, tuple(meta["labels"]), layout, meta["tokenizer"])
    except (OSError, ValueError, KeyError):
        return None


def _same_ids(tokens: TokenSet, split: str, splits: LabelledText, task: Task, tokenizer: Any) -> bool:
    """Whether the first rows, encoded now, are what the cache holds."""
    rows = tokens.rows(split)
    columns = splits.columns(split)
    if len(rows) != len(columns["id"]):
        return False
    some: Sequence[list[int]] = _encode(columns, slice(0, SAMPLE), task, tokenizer)["input_ids"]
    batch = rows.batch(np.arange(len(some)))
    masks = batch.inputs["attention_mask"].bool()
    return all(ids[mask].tolist() == now for ids, mask, now in zip(batch.inputs["input_ids"], masks, some, strict=True))
