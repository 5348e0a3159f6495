"""Reads the JSON files of a model folder, which a stranger wrote: with a limit for size, depth and numbers."""

import json
from pathlib import Path
from typing import Any

from kdray.errors import TeacherError, first_line
from kdray.safe_text.escaping import printable
from kdray.storage.safe_json import is_deep

MAX_CONFIG_BYTES = 10_000_000
"""The largest config.json or index that is read. The index of the largest published models has about 3 MB."""
MAX_TOKENIZER_BYTES = 100_000_000
"""The largest file of a tokenizer that is read. The largest published ones have about 70 MB."""
MAX_LEVELS = 100
"""The deepest nesting that is read; transformers itself recurses into each level."""


def read_object(file: Path, where: str, max_bytes: int) -> dict[str, Any]:
    """The JSON object in this file.

    Raises TeacherError, with `where` at the beginning of the message, if the file is larger than `max_bytes`, is no
    JSON, nested too deeply, or contains NaN or Infinity, which JSON does not have.
    """
    name = printable(file.name, 100)
    size = file.stat().st_size
    if size > max_bytes:
        raise TeacherError(f"{where}: {name} has {size:,} bytes; at most {max_bytes:,} are read. Give a smaller file.")
    try:
        value = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise TeacherError(_too_deep(where, name)) from None
    except (OSError, ValueError) as error:
        raise TeacherError(
            f"{where}: {name} is no JSON ({printable(first_line(error), 150)}). Save the model and its tokenizer again "
            "with save_pretrained, or download the file again."
        ) from None
    if not isinstance(value, dict):
        raise TeacherError(f"{where}: {name} holds a {type(value).__name__}, not a JSON object. Save it again.")
    if is_deep(value, MAX_LEVELS):
        raise TeacherError(_too_deep(where, name))
    return value


def _too_deep(where: str, name: str) -> str:
    return f"{where}: {name} is nested more than {MAX_LEVELS} levels deep, which no model needs. Give a correct file."


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
