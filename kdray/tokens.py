"""Token ids: written once as Arrow files, memory-mapped by every worker, cut into padded batches.

Imports nothing that loads raw data, so that a worker starts quickly; what the rows say is `kdray.data`'s business,
and what the teacher said of them is `transfer`'s.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from kdray.errors import TeacherError
from kdray.mirror import fetched
from kdray.paths import StoragePaths, file_fingerprint, fingerprint, new_folder, write_json
from kdray.tasks.task import Task

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")

FORMAT = 1
"""Goes into every key: raise it when what is written changes."""
BUCKET_BATCHES = 50
"""Batches cut from one shuffled pool sorted by length: more pads less, fewer mixes better."""
ENCODED_AT_ONCE = 2000
SAMPLE = 16


class LabelledText(Protocol):
    """What is tokenised: `kdray.data.Splits`."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def key(self) -> str: ...

    def columns(self, split: str) -> Mapping[str, Any]:
        """The columns id, text, pair (where there are pairs) and label, each to be sliced."""
        ...


class LogitStore(Protocol):
    """Where the teacher's logits of a split lie: `transfer.Logits`, or any array."""

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        """K row numbers to K x C float32."""
        ...


@dataclass(frozen=True)
class Batch:
    """Padded rows, ready for a model."""

    inputs: dict[str, Tensor]
    """input_ids, attention_mask and whatever else the tokenizer makes, each B x L."""
    labels_B: Tensor
    ids: np.ndarray
    teacher_logits_BxC: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """The same batch on the device."""
        taught = self.teacher_logits_BxC
        return replace(
            self,
            inputs={name: values.to(device, non_blocking=True) for name, values in self.inputs.items()},
            labels_B=self.labels_B.to(device, non_blocking=True),
            teacher_logits_BxC=None if taught is None else taught.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Layout:
    """How the rows of a token set are padded."""

    padding: dict[str, int]
    """The input's name -> the value that fills it up."""
    max_length: int


class Rows:
    """One split of a token set: numpy views of a memory-mapped file, which processes on one node share.

    Pickled as the name of its file; the receiving process maps it anew.
    """

    def __init__(
        self, file: Path, layout: Layout, logits: LogitStore | None = None, part: tuple[int, int] | None = None
    ) -> None:
        self._arguments = (file, layout, logits, part)
        self._layout, self._logits = layout, logits
        table = _mapped(file)
        if part is not None:
            table = table.slice(part[0], part[1] - part[0])
        self.ids: np.ndarray = table["id"].to_numpy()
        """Of each example: its row number in the split it was read from."""
        self.lengths: np.ndarray = table["length"].to_numpy()
        """In tokens, int32."""
        lists = {name: table[name] for name in layout.padding}
        self._starts: np.ndarray = next(iter(lists.values())).offsets.to_numpy()
        self._values: dict[str, np.ndarray] = {name: column.values.to_numpy() for name, column in lists.items()}
        self._labels: np.ndarray = table["label"].to_numpy()

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, self._arguments

    @cached_property
    def labels(self) -> np.ndarray:
        """The number of each row's label, int64; a copy, for torch takes no read-only array."""
        return self._labels.astype(np.int64)

    def with_logits(self, logits: LogitStore) -> "Rows":
        """The same rows with the teacher's logits beside them."""
        return Rows(*self._arguments[:2], logits)

    def part(self, start: int, stop: int) -> "Rows":
        """The rows from `start` up to `stop`, without logits."""
        return Rows(*self._arguments[:2], None, (start, stop))

    def teacher_logits(self, indices: np.ndarray) -> np.ndarray:
        """The teacher's logits of these rows, K x C float32. Raises LookupError for rows without."""
        if self._logits is None:
            raise LookupError("these rows have no teacher logits; TransferSet.rows gives them.")
        return np.asarray(self._logits[indices], dtype=np.float32)

    def batch(self, indices: np.ndarray, multiple: int = 1) -> Batch:
        """These rows, padded to the longest of them and on to a multiple, but never beyond the maximum length.

        Rows without any token, as decoders' tokenizers make of empty texts, are one token of padding.
        """
        lengths_B = self.lengths[indices]
        longest = max(1, int(lengths_B.max()))
        width = max(longest, min(-(-longest // multiple) * multiple, self._layout.max_length))
        columns_L = np.arange(width)
        real_BxL = columns_L < lengths_B[:, None]
        places_BxL = self._starts[indices][:, None] + columns_L
        inputs = {"attention_mask": torch.from_numpy(real_BxL.astype(np.int64))}
        for name, values in self._values.items():
            filled_BxL = np.where(real_BxL, values.take(places_BxL, mode="clip"), self._layout.padding[name])
            inputs[name] = torch.from_numpy(filled_BxL.astype(np.int64, copy=False))
        return Batch(
            inputs=inputs,
            labels_B=torch.from_numpy(self._labels[indices].astype(np.int64)),
            ids=self.ids[indices],
            teacher_logits_BxC=None if self._logits is None else torch.from_numpy(self.teacher_logits(indices)),
        )


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
        return Rows(fetched(self.folder) / f"{split}.arrow", self.layout)

    def check_tokenizer(self, tokenizer: Any, owner: str) -> None:
        """Raise TeacherError when this tokenizer would give other ids; `owner` names whose it is."""
        if tokenizer_key(tokenizer) != self.tokenizer_key:
            raise TeacherError(
                f"{owner}: its tokenizer is not the one that the token ids in {self.folder} were made with, so it "
                f"would read other words than were written. Tokenise the data with its own tokenizer."
            )


def tokenised(splits: LabelledText, task: Task, tokenizer: Any, paths: StoragePaths) -> TokenSet:
    """The token ids of these splits, from the storage's cache when they are there and sound.

    Cached by content: rows, labels, tokenizer, maximum length. Raises SpecError for a tokenizer that cannot be used.
    """
    own = tokenizer_key(tokenizer)
    key = fingerprint(FORMAT, task.name, task.max_length, splits.key, own)
    folder = fetched(paths.tokens(key))
    cached = _read(folder, key)
    if cached and cached.tokenizer_key == own and all(_same_ids(cached, s, splits, task, tokenizer) for s in SPLITS):
        return cached
    if folder.exists():
        logger.warning("%s: incomplete, or made by another version of the tokenizer; made anew.", folder)
    with new_folder(folder) as temporary:
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


def epoch_batches(lengths: np.ndarray, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """The row numbers of each global batch of an epoch: every row once, rows of like length together, shuffled.

    Depends on the arguments alone. The last batch may be short.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    pool = batch_size * BUCKET_BATCHES
    batches = [
        batch
        for start in range(0, len(order), pool)
        for batch in _cut(_by_length(order[start : start + pool], lengths), batch_size)
    ]
    full = len(lengths) // batch_size
    return [batches[place] for place in random.permutation(full)] + batches[full:]


def ordered_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The row numbers of each batch, longest rows first, for evaluation and labelling; the last batch may be short."""
    return list(_cut(_by_length(np.arange(len(lengths)), lengths)[::-1], batch_size))


def _by_length(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return rows[np.argsort(lengths[rows], kind="stable")]


def _cut(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


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


def _mapped(file: Path) -> pa.RecordBatch:
    """The one record batch of the file, without reading it; the views of it keep the mapping alive."""
    return pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)


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
