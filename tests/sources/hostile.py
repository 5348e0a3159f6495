"""Files that an attacker would give: tables that run a program when a cell is read, and small files with huge rows."""

import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

PICKLES = "ray.data.arrow_pickled_object"
"""The Arrow extension type whose cells Ray unpickles when they are read."""


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> Any:
        return os.makedirs, (str(self._marker), 0o777, True)


def pickled_cells(marker: Path, rows: int) -> pa.Array:
    """A column of Ray's extension type; reading a cell makes the folder `marker`."""
    cells = pa.array([pickle.dumps(Touch(marker))] * rows, pa.large_binary())
    return pa.ExtensionArray.from_storage(ArrowPythonObjectType(), cells)


def nested_in(cells: pa.Array, place: str) -> pa.Array:
    """The column itself, or inside of another type."""
    offsets = pa.array(range(len(cells) + 1), pa.int32())
    match place:
        case "struct":
            return pa.StructArray.from_arrays([cells], ["inner"])
        case "list":
            return pa.ListArray.from_arrays(offsets, cells)
        case "map":
            return pa.MapArray.from_arrays(offsets, pa.array([str(n) for n in range(len(cells))]), cells)
        case "struct in a list":
            return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays([cells], ["inner"]))
        case "dictionary":
            return pa.DictionaryArray.from_arrays(pa.array(range(len(cells)), pa.int32()), cells)
        case _:
            return cells
