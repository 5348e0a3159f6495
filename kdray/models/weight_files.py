"""The weights of a model folder: safetensors files only, whose headers are read, so the check takes no time.

Other formats are pickled and can run code when they are loaded. transformers would load them, too, if the index of a
folder named them.
"""

import math
from pathlib import Path

from safetensors import SafetensorError, safe_open

from kdray.errors import TeacherError, first_line
from kdray.models.json_files import MAX_CONFIG_BYTES, read_object
from kdray.safe_text.escaping import printable

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
"""Patterns of weight files in other formats than safetensors; most of them are pickled and can run code when loaded."""
LFS_POINTER = b"version https://git-lfs"
"""The first bytes of the small text file that stands for a large file which Git has not downloaded."""


def weight_files(folder: Path, where: str) -> list[Path]:
    """The safetensors files that transformers loads from this folder.

    Raises TeacherError, with `where` at the beginning of the message, if there are none, or if the index names anything
    but a safetensors file in the folder itself.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return [folder / name for name in _shard_names(folder, where)]
    raise TeacherError(f"{where}: {_why_no_weights(folder)}")


def count_stored_weights(folder: Path, where: str) -> int:
    """The number of values in the weight files, from their headers alone.

    Raises TeacherError as `weight_files` does, and for a file that is incomplete or is no safetensors file.
    """
    return sum(_count_values(file, where) for file in weight_files(folder, where))


def _shard_names(folder: Path, where: str) -> list[str]:
    """The names of the files that the index names; each is a file in the folder."""
    index = read_object(folder / INDEX, where, MAX_CONFIG_BYTES)
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards or not isinstance(index.get("metadata"), dict):
        raise TeacherError(
            f"{where}: {INDEX} has no weight_map or no metadata. Save the model again with save_pretrained."
        )
    names = list(dict.fromkeys(shards.values()))
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name or "\\" in name:
            raise TeacherError(
                f"{where}: {INDEX} names {printable(repr(name), 100)}, which is no safetensors file in that folder. "
                "Weights in other formats can run code when they are loaded. Save the model again with save_pretrained."
            )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise TeacherError(
            f"{where}: {INDEX} names {printable(missing[0], 100)}{others}, but {len(missing)} of the {len(names)} "
            "weight files are missing. Copy or download them, too."
        )
    return sorted(names)


def _count_values(file: Path, where: str) -> int:
    with file.open("rb") as opened:
        if opened.read(len(LFS_POINTER)) == LFS_POINTER:
            raise TeacherError(
                f"{where}: {file.name} is a Git LFS pointer, not the weights. Run `git lfs pull` in that folder."
            )
    try:
        with safe_open(file, framework="numpy") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118  (no dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise TeacherError(
            f"{where}: {file.name} ({file.stat().st_size:,} bytes) is truncated or no safetensors file "
            f"({printable(first_line(error), 150)}). Copy or download it again."
        ) from None


def _why_no_weights(folder: Path) -> str:
    """The end of a sentence about a folder without weights: what is in it, and what to do."""
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    if shards:
        return (
            f"neither {WEIGHTS} nor {INDEX} in it, so {printable(shards[0], 100)} is not loaded. Copy the index, too, "
            "or save the model again with save_pretrained."
        )
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        return (
            f"only pickled weights ({printable(', '.join(pickled), 200)}), which can run code when they are loaded; "
            "kdray loads safetensors only. Convert them once with model.save_pretrained(folder)."
        )
    return f"no weights in it; {WEIGHTS} is missing."
