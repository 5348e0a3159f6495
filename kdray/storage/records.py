"""Reads and writes the small JSON files of a sweep as frozen pydantic models, one model for each kind of file."""

from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, FiniteFloat, TypeAdapter, ValidationError

from kdray.errors import StorageError
from kdray.safe_text.escaping import printable
from kdray.storage.files import read_json, write_json

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

Number: TypeAlias = int | FiniteFloat
"""A number as JSON has it, without `NaN` and `Infinity`; a whole number stays one."""
FIGURES = TypeAdapter(dict[str, Number])
"""The values of metrics or costs, by name."""


def read_record(kind: type[M], path: Path) -> M | None:
    """The record in this file; None if the file does not exist. Raises StorageError if its content is not valid."""
    if not path.exists():
        return None
    return check_value(TypeAdapter(kind), read_json(path), path)


def read_value(kind: TypeAdapter[T], path: Path) -> T:
    """The value of this kind in a JSON file. Raises StorageError if its content is not valid."""
    return check_value(kind, read_json(path), path)


def check_value(kind: TypeAdapter[T], value: Any, source: object) -> T:
    """The value, which comes from `source`, as one of this kind. Raises StorageError if it is none."""
    try:
        return kind.validate_python(value)
    except (ValidationError, RecursionError) as error:
        raise StorageError(
            f"{source}: is damaged ({describe_problem(error)}). Restore it, or start over with --fresh."
        ) from None


def describe_problem(error: Exception) -> str:
    """What is wrong with a value, in one line: for a ValidationError, the first wrong part of the value."""
    if not isinstance(error, ValidationError):
        return printable(f"{type(error).__name__}: {error}", 200)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return printable(f"{where or 'the whole file'}: {first['msg']}", 200)


def write_record(path: Path, record: BaseModel) -> None:
    """Write a record atomically."""
    write_json(path, record.model_dump(mode="json"))
