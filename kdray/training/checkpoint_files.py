"""Reads and writes checkpoint files, and checks a state before anything of it is used.

Whoever can write into the storage may have written a checkpoint, with a right checksum. So it is read without running
code, within limits, and a state that does not fit the model is refused before a part of it is loaded.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdray.errors import StorageError
from kdray.storage.files import replace_file
from kdray.storage.safe_json import read_regular_file

DIGEST_BYTES = hashlib.sha256().digest_size
PARTS = {"model", "optimizer", "ranks", "reports", "at"}
SIZE_FACTOR = 8
"""A longer checkpoint than this many times the model is not read; with AdamW it is three times the model."""
SIZE_MARGIN_BYTES = 1 << 30
"""The size that a checkpoint may have besides that: random states and sums of each rank, reports."""


def max_checkpoint_bytes(model: nn.Module) -> int:
    """The longest checkpoint of a training of this model that is read.

    The projections of inner terms are smaller than the margin.
    """
    tensors = chain(model.parameters(), model.buffers())
    return SIZE_MARGIN_BYTES + SIZE_FACTOR * sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write the SHA-256 of the state, then the state: tensors and plain values.

    The previous file stays in place until the new file is complete.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with replace_file(path) as temporary, temporary.open("wb") as file:
        file.write(hashlib.sha256(buffer.getbuffer()).digest())
        file.write(buffer.getbuffer())


def read_checkpoint(path: Path, max_bytes: int = SIZE_MARGIN_BYTES) -> dict[str, Any]:
    """The state in this file, on the CPU. Raises StorageError if the file is not as it was written."""
    data = memoryview(read_regular_file(path, max_bytes))
    if hashlib.sha256(data[DIGEST_BYTES:]).digest() != bytes(data[:DIGEST_BYTES]):
        raise StorageError(f"{path}: the checkpoint is damaged: its contents do not match its checksum.")
    file = io.BytesIO(data[DIGEST_BYTES:])
    try:
        # Torch writes its archives without compression. In a compressed one, 800 bytes may be gigabytes of tensors.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in zipfile.ZipFile(file).infolist()):
            raise ValueError("it is compressed")
        file.seek(0)
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # the unpickler of torch raises errors of many kinds for a file that it did not write
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise StorageError(f"{path}: kdray has not written this checkpoint ({reason}).") from None
    if not isinstance(state, dict):
        raise StorageError(f"{path}: kdray has not written this checkpoint (it is no dictionary).")
    return state


def check_state(
    state: Mapping[str, Any],
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Mapping[str, Tensor],
) -> None:
    """Raise StorageError if this state is none of a training of this model with this optimizer.

    `objective` has the tensors that the loss learns.
    """
    checks = {
        "parts": lambda: state.keys() == (PARTS | {"objective"} if objective else PARTS),
        "objective": lambda: _kinds(state.get("objective", {})) == _kinds(objective),
        "model": lambda: _kinds(state["model"]) == _kinds(model.state_dict()),
        "optimizer": lambda: _fits_optimizer(state["optimizer"], optimizer),
        "ranks": lambda: isinstance(state["ranks"], list) and all(map(_is_rank, state["ranks"])),
        "reports": lambda: isinstance(state["reports"], list) and all(map(_is_report, state["reports"])),
        "at": lambda: isinstance(state["at"], dict) and all(_is_count(value) for value in state["at"].values()),
    }
    for part, fits in checks.items():
        try:
            is_right = fits()
        except (TypeError, KeyError, AttributeError, IndexError, ValueError, RuntimeError):  # a value of another kind
            is_right = False
        if not is_right:
            raise StorageError(f"{path}: the checkpoint does not fit this training ({part}).")


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    """Shape, type and layout of each tensor; a tensor without numbers (`meta`) is of another kind."""
    return {
        name: (tuple(tensor.shape), tensor.dtype, tensor.layout, tensor.is_meta) for name, tensor in tensors.items()
    }


def _fits_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> bool:
    """Whether the groups have the same parameters and kinds of values, and the moments the shapes of the parameters."""
    now = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    are_groups_equal = [group["params"] for group in state["param_groups"]] == [group["params"] for group in now]
    are_values_right = all(
        group[name] is None or value is None or isinstance(group[name], type(value))
        for group, group_now in zip(state["param_groups"], now, strict=True)
        for name, value in group_now.items()
        if name in group
    )
    are_moments_right = all(
        value.is_floating_point()
        and value.layout is torch.strided
        and not value.is_meta
        and (value.numel() == 1 or value.shape == parameters[index].shape)
        for index, moments in state["state"].items()
        for value in moments.values()
    )
    return are_groups_equal and are_values_right and are_moments_right


def _is_rank(rank: Mapping[str, Any]) -> bool:
    """Whether these are the random states and the sums of a rank."""
    random, sums = rank["random"], rank["sums"]
    torch.Generator().set_state(random["cpu"])  # raises an error for a state of another size or content
    is_random = "cuda" not in random or not torch.cuda.is_available() or _is_cuda_state(random["cuda"])
    numbers = [sums["norm"], *sums["terms"].values()]
    are_numbers = all(isinstance(number, Tensor) and number.numel() == 1 for number in numbers)
    are_counts = _is_count(sums["rows"]) and _is_count(sums.get("answers", 0))
    return is_random and are_numbers and are_counts and isinstance(sums["seconds"], float)


def _is_cuda_state(state: Tensor) -> bool:
    now = torch.cuda.get_rng_state()
    return state.dtype == now.dtype and state.shape == now.shape


def _is_report(report: Mapping[str, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(value, Real | str) for name, value in report.items())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0
