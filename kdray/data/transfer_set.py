"""Reads a transfer set: the teacher's logits, memory-mapped and keyed by example id.

`kdray.teacher.transfer` writes transfer sets and describes their files. Shapes: A answers of a split, K selected ones,
C outputs.
"""

from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from kdray.data.rows import TRAIN, Rows
from kdray.data.tokens import TokenSet
from kdray.errors import StorageError
from kdray.sources.arrow_types import check_schema
from kdray.storage.mirror import fetch_files


class StoredLogits:
    """The stored logits of one split, memory-mapped; `logits[indices]` is float32, K x C."""

    def __init__(self, files: list[Path]) -> None:
        """Map the files of a split, in the order of their answers."""
        tables = [_map_file(file) for file in files]
        self._shards = [_as_matrix(table.column("logits").combine_chunks()) for table in tables]
        self._ids = [table.column("id").to_numpy() for table in tables]
        self._starts = np.array([0, *accumulate(len(shard) for shard in self._shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        if len(self._shards) == 1:
            return self._shards[0][indices]
        # Concatenated shards would need only one lookup, but would be a copy in the memory of each process.
        shards_K = np.searchsorted(self._starts, indices, side="right") - 1
        logits_KxC = np.empty((len(indices), self._shards[0].shape[1]), np.float32)
        for shard in np.unique(shards_K):
            in_shard_K = shards_K == shard
            logits_KxC[in_shard_K] = self._shards[shard][indices[in_shard_K] - self._starts[shard]]
        return logits_KxC

    def of(self, rows: Rows) -> Rows:
        """These rows with their logits. Raises StorageError if the logits have other example ids than the rows."""
        if not np.array_equal(np.concatenate(self._ids), rows.answer_ids):
            raise StorageError(
                "the transfer set was written for other rows: its example ids are not the data's. Remove it."
            )
        return rows.with_logits(self)

    def all(self) -> np.ndarray:
        """The logits of all answers, A x C; a copy in memory."""
        return np.concatenate(self._shards)


@dataclass(frozen=True)
class TransferSet:
    """A complete transfer set on disk."""

    folder: Path

    def logits(self, split: str) -> StoredLogits:
        """The logits of one split."""
        # The name of a file ends with the number of its first row, with leading zeros: sorted, the rows are in order.
        return StoredLogits(sorted(fetch_files(self.folder).glob(f"{split}-*.arrow")))

    def rows(self, tokens: TokenSet, split: str) -> Rows:
        """The labelled rows of a split with the teacher's logits. Raises StorageError if these have other ids."""
        rows = self.all_rows(tokens, split)
        return rows if split != TRAIN else rows.first(tokens.train_ends[0])

    def all_rows(self, tokens: TokenSet, split: str) -> Rows:
        """All rows of a split with the teacher's logits: for train with the texts without labels and all copies.

        Rows with other masks in each pass have no logits.
        """
        rows = tokens.all_rows(split)
        return rows if tokens.is_masked_anew(split) else self.logits(split).of(rows)


def _map_file(file: Path) -> pa.Table:
    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    # Others can write to a shared storage.
    check_schema(reader.schema, str(file))
    return reader.read_all()


def _as_matrix(column: pa.Array) -> np.ndarray:
    """A column of lists, in one chunk, as N x C without a copy."""
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), column.type.list_size)
