"""Reads a transfer set: the teacher's logits, memory-mapped and keyed by row id.

It is written by `kdray.teacher.transfer`, which describes its files.
"""

from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from kdray.data.rows import Rows
from kdray.data.tokens import TokenSet
from kdray.errors import StorageError
from kdray.storage.mirror import fetch_files

SPLITS = ("train", "validation", "test")


class StoredLogits:
    """The stored logits of one split, memory-mapped; `logits[indices]` is float32, K x C."""

    def __init__(self, files: list[Path]) -> None:
        tables = [pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in files]
        self._shards = [_matrix(table.column("logits").combine_chunks()) for table in tables]
        self._ids = [table.column("id").to_numpy() for table in tables]
        self._starts = np.array([0, *accumulate(len(shard) for shard in self._shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        if len(self._shards) == 1:
            return self._shards[0][indices]
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        out = np.empty((len(indices), self._shards[0].shape[1]), np.float32)
        for shard in np.unique(shards):
            here = shards == shard
            out[here] = self._shards[shard][indices[here] - self._starts[shard]]
        return out

    def of(self, rows: Rows) -> Rows:
        """These rows with their logits. Raises StorageError when the example ids differ."""
        if not np.array_equal(np.concatenate(self._ids), rows.ids):
            raise StorageError(
                "the transfer set was written for other rows: its example ids are not the data's. Remove it."
            )
        return rows.with_logits(self)

    def all(self) -> np.ndarray:
        """Every row's logits, N x C."""
        return np.concatenate(self._shards)


@dataclass(frozen=True)
class TransferSet:
    """A finished transfer set on disk."""

    folder: Path

    def logits(self, split: str) -> StoredLogits:
        return StoredLogits(sorted(fetch_files(self.folder).glob(f"{split}-*.arrow")))

    def rows(self, tokens: TokenSet, split: str) -> Rows:
        """The token ids of a split with the teacher's logits."""
        return self.logits(split).of(tokens.rows(split))


def _matrix(column: pa.Array) -> np.ndarray:
    """A list column of one chunk as N x C, without a copy."""
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)
