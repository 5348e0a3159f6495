"""One split of the token ids, memory-mapped, and padded batches of its rows.

Shapes: B rows of a batch, L tokens of its longest row, K selected rows, C classes.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from kdray.data.arrow_types import check_schema

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")


class LogitStore(Protocol):
    """The teacher's logits of a split: `transfer_set.StoredLogits`, or any array."""

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        """The logits of the rows with these numbers, K x C."""
        ...


@dataclass(frozen=True)
class Batch:
    """Padded rows as tensors: the inputs of a model, and what its loss compares the outputs with."""

    inputs: dict[str, Tensor]
    """input_ids, attention_mask and the tokenizer's other inputs, such as token_type_ids; int64, each B x L."""
    labels_B: Tensor
    ids: np.ndarray
    """The example id of each row, as in `Rows.ids`."""
    teacher_logits_BxC: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """The same batch with its tensors on the device."""
        teacher_logits_BxC = self.teacher_logits_BxC
        if teacher_logits_BxC is not None:
            teacher_logits_BxC = teacher_logits_BxC.to(device, non_blocking=True)
        return replace(
            self,
            inputs={name: values.to(device, non_blocking=True) for name, values in self.inputs.items()},
            labels_B=self.labels_B.to(device, non_blocking=True),
            teacher_logits_BxC=teacher_logits_BxC,
        )


@dataclass(frozen=True)
class Layout:
    """How the rows of a token set are padded."""

    padding: dict[str, int]
    """Name of an input -> its padding value."""
    max_length: int
    """Tokens; no batch is wider."""


class Rows:
    """One split of a token set: numpy views of a memory-mapped file, which all processes on a node share.

    Pickle stores the name of the file, not the data; the process that unpickles the rows maps the file again.
    """

    def __init__(
        self, file: Path, layout: Layout, logits: LogitStore | None = None, part: tuple[int, int] | None = None
    ) -> None:
        self._arguments = (file, layout, logits, part)
        self._layout, self._logits = layout, logits
        table = _map_file(file)
        if part is not None:
            table = table.slice(part[0], part[1] - part[0])
        self.ids: np.ndarray = table["id"].to_numpy()
        """The example id of each row: its row number in the split as it was read from the source."""
        self.lengths: np.ndarray = table["length"].to_numpy()
        """The number of tokens of each row, int32."""
        lists = {name: table[name] for name in layout.padding}
        # All inputs of a row have the same length, so the offsets of one input are those of all.
        self._starts: np.ndarray = next(iter(lists.values())).offsets.to_numpy()
        self._values: dict[str, np.ndarray] = {name: column.values.to_numpy() for name, column in lists.items()}
        self._labels: np.ndarray = table["label"].to_numpy()

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, self._arguments

    @cached_property
    def labels(self) -> np.ndarray:
        """The number of each row's label, int64."""
        # A copy, because torch warns about read-only arrays, such as those of a memory map.
        return self._labels.astype(np.int64)

    def with_logits(self, logits: LogitStore) -> "Rows":
        """The same rows with the teacher's logits."""
        return Rows(*self._arguments[:2], logits)

    def part(self, start: int, stop: int) -> "Rows":
        """The rows from `start` to `stop - 1`, without logits."""
        return Rows(*self._arguments[:2], None, (start, stop))

    def teacher_logits(self, indices: np.ndarray) -> np.ndarray:
        """The teacher's logits of these rows, K x C float32. Raises LookupError if the rows have no logits."""
        if self._logits is None:
            raise LookupError("these rows have no teacher logits; TransferSet.rows gives them.")
        return np.asarray(self._logits[indices], dtype=np.float32)

    def batch(self, indices: np.ndarray, multiple: int = 1) -> Batch:
        """These rows, padded to the longest one and then to a multiple of `multiple`, at most to the maximum length.

        A batch has at least one column: a row without tokens, which a decoder's tokenizer makes of an empty text,
        consists of padding.
        """
        lengths_B = self.lengths[indices]
        longest = max(1, int(lengths_B.max()))
        width = max(longest, min(-(-longest // multiple) * multiple, self._layout.max_length))
        columns_L = np.arange(width)
        is_token_BxL = columns_L < lengths_B[:, None]
        places_BxL = self._starts[indices][:, None] + columns_L
        inputs = {"attention_mask": torch.from_numpy(is_token_BxL.astype(np.int64))}
        for name, values in self._values.items():
            # The places of padding lie in the next row, or beyond the end of the values. "clip" accepts the latter, and
            # np.where replaces whatever was read there.
            tokens_BxL = values.take(places_BxL, mode="clip")
            padded_BxL = np.where(is_token_BxL, tokens_BxL, self._layout.padding[name])
            inputs[name] = torch.from_numpy(padded_BxL.astype(np.int64, copy=False))
        return Batch(
            inputs=inputs,
            labels_B=torch.from_numpy(self._labels[indices].astype(np.int64)),
            ids=self.ids[indices],
            teacher_logits_BxC=None if self._logits is None else torch.from_numpy(self.teacher_logits(indices)),
        )


def _map_file(file: Path) -> pa.RecordBatch:
    """The only record batch of the file, memory-mapped; arrays that view it keep the mapping open."""
    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    # Others can write to a shared storage.
    check_schema(reader.schema, str(file))
    return reader.get_batch(0)
