"""Reads JSON: a list of objects, one object a line, or one object with the list of rows below a key."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from kdray.errors import DataError, did_you_mean
from kdray.sources.data_files import DataFile, open_data
from kdray.sources.encodings import SET_ENCODING, as_utf8, describe_bad_byte
from kdray.sources.memory import Budget
from kdray.sources.tables import Table, check_width, short_repr

_START = b"\xef\xbb\xbf \t\r\n"
"""What may stand before the first bracket: the byte order mark of UTF-8, and white space."""
_POINTER_BYTES = 8
_OBJECT_BYTES = 64
"""The least memory of a Python object with a reference to it."""
_OLD_LINE_END = b"}\r{"
_LONGEST_LINE = 1 << 28
"""Bytes. A line is parsed at once."""
_TOO_DEEP = "too many levels of lists and objects. Write one object a line, with texts and numbers in it."


def read_json(file: DataFile, budget: Budget, *, field: str | None, encoding: str | None) -> Table:
    """Read rows that are JSON objects; a name that an object does not have is a null.

    The content decides whether it is a list or one object a line, not the ending: files called .json often have one
    object in each line. `field` is the dotted name of the key with the rows. Raises DataError for anything else.
    """
    with open_data(file, budget) as packed:
        stream, found = as_utf8(packed, encoding)
        notes = (f"{file.where}: read as {found}, by its byte order mark.",) if found else ()
        is_list = stream.peek(64)[:64].lstrip(_START).startswith(b"[")  # type: ignore[attr-defined]
        if field is not None and not is_list:
            rows: Iterable[Any] = _below(_parse_whole(stream, file.where, budget), field, file.where)
        else:
            rows = _iterate_list(stream, file.where, budget) if is_list else _iterate_lines(stream, file.where, budget)
        return _table(rows, file.where, budget, notes)


def _table(rows: Iterable[Any], where: str, budget: Budget, notes: tuple[str, ...]) -> Table:
    cells: dict[str, list[Any]] = {}
    count, row = 0, None
    for count, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(
                f'{where}, row {count}: {short_repr(row)} is not an object such as {{"text": ..., "label": ...}}.'
            )
        for name, value in row.items():
            if name not in cells:
                # Rows that all have other names would make a table of mostly nulls, much larger than the file.
                budget.use(_POINTER_BYTES * count, where)
                cells[name] = [None] * (count - 1)
            cells[name].append(value)
        check_width(len(cells), where)
        budget.use(_POINTER_BYTES * len(cells), where)
        for column in cells.values():
            if len(column) < count:
                column.append(None)
    return Table(where, cells, notes=notes, hint=_hint(row) if count == 1 else "")


def _hint(row: Any) -> str:
    """The setting that is missing if a file is one object with the list of rows below a key."""
    keys = list(_keys_of_rows(row))
    return f"The file has rows below {', '.join(keys)}: set data.field to it. " if keys else ""


def _keys_of_rows(value: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of the keys with a list of objects, at most two levels deep."""
    for name, inner in value.items():
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):
            yield f"{prefix}{name}"
        elif isinstance(inner, dict) and not prefix:
            yield from _keys_of_rows(inner, f"{name}.")


def _below(value: Any, field: str, where: str) -> list[Any]:
    """The list below a dotted key. Raises DataError if the key is missing or is no list."""
    inner = value
    for name in field.split("."):
        if not isinstance(inner, dict) or name not in inner:
            keys = list(_keys_of_rows(value)) if isinstance(value, dict) else []
            raise DataError(f"{where}: no key {field!r} (data.field); {did_you_mean(field, keys)}")
        inner = inner[name]
    if not isinstance(inner, list):
        raise DataError(f"{where}: {short_repr(inner)} below {field!r} (data.field) is not a list of rows.")
    return inner


def _iterate_list(stream: BinaryIO, where: str, budget: Budget) -> Iterator[Any]:
    """The elements of the JSON list in a file."""
    value = _parse_whole(stream, where, budget)
    yield from value if isinstance(value, list) else [value]


def _parse_whole(stream: BinaryIO, where: str, budget: Budget) -> Any:
    data = stream.read()
    budget.use(_memory_of(data), where)
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{where}, line {line}: {describe_bad_byte(error)}. {SET_ENCODING}") from None
    except RecursionError:
        raise DataError(f"{where}: {_TOO_DEEP}") from None
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}). Allowed: a list of objects, or one object a line.") from None


def _iterate_lines(stream: BinaryIO, where: str, budget: Budget) -> Iterator[Any]:
    """The JSON value of each line that is not empty."""
    for row, line in enumerate(_lines(stream), 1):
        budget.use(_memory_of(line), where)
        try:
            yield json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise DataError(f"{where}, row {row}: {describe_bad_byte(error)}. {SET_ENCODING}") from None
        except RecursionError:
            raise DataError(f"{where}, row {row}: {_TOO_DEEP}") from None
        except ValueError as error:
            rest = stream.read(1 << 24) if row == 1 else b""
            raise DataError(f"{where}, row {row}: not JSON ({error}). {_advice(line + rest)}") from None


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines that are not empty; they end as on Unix, on Windows, or on old Macs."""
    while line := stream.readline(_LONGEST_LINE):
        # One object directly after another one is never part of a JSON value.
        pieces = line.replace(_OLD_LINE_END, b"}\n{").split(b"\n") if _OLD_LINE_END in line else [line]
        yield from (piece for piece in pieces if piece.strip())


def _advice(data: bytes) -> str:
    """What to do about a first line that is not JSON: the whole file may be one object over several lines."""
    try:
        keys = list(_keys_of_rows(json.loads(data)))
    except (ValueError, RecursionError, AttributeError):
        keys = []
    return f"The file is one object with rows below {', '.join(keys)}: set data.field." if keys else "Correct the line."


def _memory_of(data: bytes) -> int:
    """About how many bytes the Python objects of this JSON need: at least one object for each separator."""
    return len(data) + _OBJECT_BYTES * sum(data.count(separator) for separator in (b",", b"[", b"{"))
