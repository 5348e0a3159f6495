"""Reads and writes the small JSON files of a sweep as frozen pydantic models, one model for each kind of file."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from kdray.errors import StorageError
from kdray.storage.files import read_json, write_json

M = TypeVar("M", bound=BaseModel)


def read_record(kind: type[M], path: Path) -> M | None:
    """The record in this file; None if the file does not exist. Raises StorageError if its content is not valid."""
    if not path.exists():
        return None
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StorageError(
            f"{path}: is damaged ({where or 'the whole file'}: {first['msg']}). Restore it, or start over with --fresh."
        ) from None


def write_record(path: Path, record: BaseModel) -> None:
    """Write a record atomically."""
    write_json(path, record.model_dump(mode="json"))
