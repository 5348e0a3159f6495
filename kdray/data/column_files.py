"""Writes an Arrow file with one record batch piece by piece, so that the memory does not grow with the rows.

Arrow's own writer makes a record batch of each piece. A reader that looks up rows all over the file, as `rows` does,
would have to find the batch of each row; in a single batch a column is one array, which numpy can index.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

OFFSET = pa.int64()
"""The type of the offsets of a large list."""


class ColumnFiles:
    """The numbers of each column, and of the lists in it, in files of their own; `write` makes one Arrow file of them.

    Columns have numbers, large lists or lists of a fixed size, and no cell is null.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is empty, and may be deleted after `write`."""
        self.rows = 0
        """The number of rows so far."""
        self._folder, self._schema = folder, pa.schema([])
        self._ends: dict[str, int] = {}

    def append(self, piece: pa.RecordBatch) -> None:
        """Add rows. Raises ValueError if their columns are not those of the first piece."""
        self._schema = self._schema or piece.schema
        if not piece.schema.equals(self._schema):
            raise ValueError(f"these rows have the columns {piece.schema}, the rows before them {self._schema}")
        for number, column in enumerate(piece.columns):
            self._append_column(str(number), column)
        self.rows += len(piece)

    def write(self, path: Path) -> None:
        """Write the Arrow file. Its columns are memory-mapped from the files here."""
        columns = [self._read_column(str(number), kind) for number, kind in enumerate(self._schema.types)]
        batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, self._schema) as writer:
            writer.write_batch(batch)

    def _append_column(self, name: str, column: pa.Array) -> None:
        if pa.types.is_large_list(column.type):
            offsets, end = column.offsets.to_numpy(), self._ends.get(name, 0)
            offsets = offsets - offsets[0] + end
            self._append_numbers(f"{name}-offsets", offsets[1:] if name in self._ends else offsets)
            self._ends[name] = int(offsets[-1])
        if pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
            self._append_column(f"{name}-items", column.flatten())
        else:
            self._append_numbers(name, column.to_numpy())

    def _append_numbers(self, name: str, numbers: np.ndarray[Any, Any]) -> None:
        with (self._folder / name).open("ab") as file:
            file.write(np.ascontiguousarray(numbers).data)

    def _read_column(self, name: str, kind: pa.DataType) -> pa.Array:
        if pa.types.is_large_list(kind):
            offsets = self._read_column(f"{name}-offsets", OFFSET)
            return pa.LargeListArray.from_arrays(offsets, self._read_column(f"{name}-items", kind.value_type))
        if pa.types.is_fixed_size_list(kind):
            return pa.FixedSizeListArray.from_arrays(
                self._read_column(f"{name}-items", kind.value_type), kind.list_size
            )
        file = self._folder / name
        size = file.stat().st_size
        # An empty file cannot be mapped.
        numbers = pa.memory_map(str(file)).read_buffer() if size else pa.py_buffer(b"")
        return pa.Array.from_buffers(kind, size // (kind.bit_width // 8), [None, numbers])
