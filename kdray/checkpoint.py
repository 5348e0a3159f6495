"""Checkpoints: the state of a cut-off training in one file, which is whole and as it was written, or is not used.

What belongs into a state is `training`'s business, when one is written, too.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from kdray.errors import StorageError
from kdray.paths import replaced_file

DIGEST_BYTES = hashlib.sha256().digest_size


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values behind their SHA-256; what was there stays until the new file is whole."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with replaced_file(path) as temporary, temporary.open("wb") as file:
        file.write(hashlib.sha256(buffer.getbuffer()).digest())
        file.write(buffer.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in this file. Raises StorageError when it is not what was written."""
    data = memoryview(path.read_bytes())
    if hashlib.sha256(data[DIGEST_BYTES:]).digest() != bytes(data[:DIGEST_BYTES]):
        raise StorageError(f"{path}: the checkpoint is damaged: its contents do not match its checksum.")
    state: dict[str, Any] = torch.load(io.BytesIO(data[DIGEST_BYTES:]), map_location="cpu", weights_only=True)
    return state
