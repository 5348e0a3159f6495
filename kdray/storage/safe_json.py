"""Reads JSON that somebody else may have written: within limits, and with a sentence for everything that is no JSON.

Python's parser has no limits of its own: 200,000 brackets exceed the depth of its recursion, and a file becomes up to
twenty times as much memory.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from kdray.errors import StorageError
from kdray.safe_text.escaping import printable

MAX_JSON_BYTES = 32 << 20
"""The longest JSON file that is read. The largest one of a sweep, the reports of a trial, has less than a tenth."""

MAX_JSON_LEVELS = 100
"""The deepest nesting that is accepted; the settings of a sweep have less than ten levels."""

REMEDY = "Restore it, or start over with --fresh."


def read_regular_file(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The content of a small file. Raises StorageError if it cannot be read, is no regular file, or is too long."""
    try:
        with open_regular_file(path) as file:
            check_size(os.fstat(file.fileno()).st_size, path, max_bytes)
            return file.read(max_bytes)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{path}: not a readable file ({error.strerror}). {REMEDY}") from None


def open_regular_file(path: Path) -> BinaryIO:
    """Open a file for reading. Raises StorageError if it is no regular file, and OSError if it cannot be opened."""
    # Without O_NONBLOCK, opening a named pipe waits until somebody writes into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StorageError(f"{path}: is not a regular file. {REMEDY}")
    return os.fdopen(descriptor, "rb")


def parse_json(text: bytes, source: object) -> Any:
    """The value in this JSON text, which comes from `source`. Raises StorageError if it is not valid JSON."""
    try:
        value = json.loads(text)
        if not is_deep(value):
            return value
        reason = "it is nested too deeply"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        reason = printable(error, 200)
    raise StorageError(f"{source}: not a readable JSON file ({reason}). {REMEDY}")


def check_size(size: int, source: object, max_bytes: int) -> None:
    """Raise StorageError if a file of so many bytes is longer than kdray reads."""
    if size > max_bytes:
        raise StorageError(
            f"{source}: has {size:,} bytes, and at most {max_bytes:,} are read, because kdray writes no longer one. "
            f"{REMEDY}"
        )


def is_deep(value: Any, most: int = MAX_JSON_LEVELS) -> bool:
    """Whether a value from JSON has more than `most` levels: the functions that read it may be recursive.

    A loop, because a recursion could overflow the stack here already.
    """
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
    return bool(level)
