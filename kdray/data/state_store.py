"""Reads the stored hidden states of a teacher: a file for each layer and shard of the rows, memory-mapped.

`kdray.teacher.state_files` writes the files and describes them. Shapes: N rows, B rows of a batch, L tokens of the
longest row, T tokens of a file without padding, H hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kdray.data.rows import TRAIN
from kdray.data.tokens import TokenSet
from kdray.errors import StorageError
from kdray.storage.mirror import fetch_files

TENSOR = "states"
"""The name of the only tensor of a file, T x H in bf16: the tokens of its rows, one row after the other."""


def state_file(first_row: int) -> str:
    """The name of the file with the states of a shard that begins with this row."""
    return f"{first_row:09d}.safetensors"


class StoredStates:
    """The hidden states of one layer for all rows of train, memory-mapped."""

    def __init__(self, folder: Path, lengths_N: np.ndarray, shard_rows: int) -> None:
        """Map the files of a layer. `lengths_N` has the tokens of each row, `shard_rows` is the rows of each file.

        Raises StorageError for a file that is missing or damaged, or that has the states of other rows.
        """
        ends_N = np.cumsum(lengths_N, dtype=np.int64)
        firsts = np.arange(0, len(lengths_N), shard_rows)
        lasts = np.minimum(firsts + shard_rows, len(lengths_N)) - 1
        begins = ends_N[firsts] - lengths_N[firsts]
        self._shards = [
            _map_file(folder / state_file(int(first)), int(count))
            for first, count in zip(firsts, ends_N[lasts] - begins, strict=True)
        ]
        if len({shard.shape[1] for shard in self._shards}) > 1:
            raise StorageError(f"{folder}: its files have states of different sizes. Remove that folder and run again.")
        self._lengths_N, self._shard_rows = lengths_N, shard_rows
        self._starts_N = ends_N - lengths_N - np.repeat(begins, lasts - firsts + 1)
        """The place of the first token of each row in its file."""

    @property
    def width(self) -> int:
        """The hidden size."""
        return int(self._shards[0].shape[1])

    def of(self, rows: np.ndarray) -> Tensor:
        """The states of the tokens of these rows, T x H in bf16: one row after the other, without padding."""
        return torch.cat([self._of_row(int(row)) for row in rows])

    def padded(self, rows: np.ndarray, width: int) -> Tensor:
        """The states of these rows, B x L x H in bf16 with L = `width`; padding has zeros."""
        states_BxLxH = torch.zeros(len(rows), width, self.width, dtype=torch.bfloat16)
        for place, row in enumerate(rows):
            states_BxLxH[place, : int(self._lengths_N[row])] = self._of_row(int(row))
        return states_BxLxH

    def _of_row(self, row: int) -> Tensor:
        start = int(self._starts_N[row])
        return self._shards[row // self._shard_rows][start : start + int(self._lengths_N[row])]


@dataclass(frozen=True)
class StateSet:
    """Complete states of some layers on disk. A pickle of it is small: it has paths, not states."""

    folders: Mapping[int, Path]
    """Number of a layer -> the folder with its files."""
    tokens: TokenSet
    """The rows as the teacher read them."""
    shard_rows: int

    def layer(self, number: int) -> StoredStates:
        """The states of one layer. Raises StorageError for files that cannot be used."""
        lengths_N = self.tokens.all_rows(TRAIN).lengths
        return StoredStates(fetch_files(self.folders[number]), lengths_N, self.shard_rows)


def _map_file(file: Path, tokens: int) -> Tensor:
    """The states in a file (T x H), memory-mapped: pages are read when they are needed, and processes share them."""
    if not file.is_file():
        raise StorageError(f"{file}: is missing, or no file. Remove it and run again.")
    try:
        with safe_open(file, framework="pt") as opened:
            states_TxH: Tensor = opened.get_tensor(TENSOR)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{file}: cannot be read ({error}). Remove it and run again.") from None
    # Others can write to a shared storage.
    if states_TxH.dtype != torch.bfloat16 or states_TxH.ndim != 2 or len(states_TxH) != tokens:
        raise StorageError(
            f"{file}: has {states_TxH.dtype} of shape {tuple(states_TxH.shape)}, not the bf16 states of the {tokens:,} "
            "tokens of these rows. Remove it and run again."
        )
    return states_TxH
