"""One split of the token ids, memory-mapped; and padded batches of its rows."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor


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


def _mapped(file: Path) -> pa.RecordBatch:
    """The one record batch of the file, without reading it; the views of it keep the mapping alive."""
    return pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)
