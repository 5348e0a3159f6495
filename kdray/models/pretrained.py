"""A model with its tokenizer as a folder in the storage's cache, whatever it came from.

Teachers, and the smaller checkpoints that students may start from, are found here (a local folder, a model hub),
checked (safetensors weights only) and copied, so that every slot reads the same files on every node.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from kdray.errors import SpecError, TeacherError
from kdray.storage.files import file_fingerprint, fingerprint, replace_folder
from kdray.storage.mirror import fetch
from kdray.storage.paths import StoragePaths
from kdray.tasks.task import Task

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
RESERVED = 2
"""Rows of a table of positions that no token has: RoBERTa begins after its padding's."""
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model"]


@dataclass(frozen=True)
class Pretrained:
    """A folder that transformers loads, and the fingerprint of what is in it."""

    folder: Path
    key: str

    def model(self) -> PreTrainedModel:
        """The model, in float32 and evaluation mode, on the CPU."""
        _quieten()
        return AutoModelForSequenceClassification.from_pretrained(
            fetch(self.folder), use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        ).eval()

    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(fetch(self.folder), trust_remote_code=False)

    @property
    def layers(self) -> int:
        return int(AutoConfig.from_pretrained(fetch(self.folder), trust_remote_code=False).num_hidden_layers)


def find_model(name: str, revision: str | None, setting: str) -> Path:
    """The local folder of the model `name`: the folder itself, or a snapshot from the model hub.

    Raises TeacherError when there is no such folder, no such model, or no safetensors weights; `setting` names the
    knob in the sentence.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked(folder.absolute(), setting)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise TeacherError(f"{setting} {name}: no such folder. Give the folder of a saved model, or a model hub name.")
    try:
        return _checked(Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES)), setting)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, TeacherError):
            raise
        reason = str(error).strip().splitlines()[0]
        raise TeacherError(
            f"{setting} {name}: neither a local folder nor a model that the hub gave ({reason}). "
            f"Give a folder that holds config.json and model.safetensors, or check the name, --set and the network."
        ) from None


def cached_folder(cache: Path, make: Callable[[Path], None]) -> Path:
    """The cached folder, made whole by `make` if it is not there yet."""
    if not fetch(cache).exists():
        with replace_folder(cache) as folder:
            make(folder)
    return cache


@dataclass(frozen=True)
class Head:
    """The classification head that a model shall have."""

    labels: tuple[str, ...]
    """The labels in the order of the outputs."""
    outputs: tuple[str, ...] | None = None
    """Which label each output of the model's own head means, where its order is another one."""
    must_be_trained: bool = False
    """Refuse a model whose head is missing, or has another number of outputs, instead of drawing a new head."""


def import_model(folder: Path, task: Task, head: Head, paths: StoragePaths, seed: int) -> Pretrained:
    """The model of this folder with this head, in the storage's cache.

    A head that is missing, or that has another number of outputs, is drawn from the seed. Raises TeacherError where
    the head must be trained and is not, SpecError where the model has no positions for the task's longest texts.
    """
    labels, order = list(head.labels), list(head.outputs or head.labels)
    key = fingerprint(weights_fingerprint(folder), labels, order, seed)

    def make(target: Path) -> None:
        torch.manual_seed(seed)
        _quieten()
        model, drawn = task.model(folder, labels)
        if drawn and head.must_be_trained:
            raise TeacherError(
                f"teacher.model {folder}: it has no trained classification head for {len(labels)} labels "
                f"({', '.join(drawn)} would be random). Fine-tune it: Teacher(..., training=Training())."
            )
        if order != labels:
            _reorder_outputs(model, [order.index(label) for label in labels])
        tokenizer = task.tokenizer(folder)
        _agree_on_padding(model, tokenizer, folder)
        save_model(model, tokenizer, target)

    imported = Pretrained(cached_folder(paths.model(key), make), key)
    _check_positions(imported, task.max_length, folder)
    return imported


def weights_fingerprint(folder: Path) -> str:
    """A fingerprint of all that decides a model's outputs: weights, configuration, tokenizer."""
    files = [path for pattern in HUB_FILES for path in folder.glob(pattern) if path.is_file()]
    return file_fingerprint(*sorted(set(files)))


def count_positions(model: PreTrainedModel, enough: int) -> int:
    """How many tokens the model has places for; `enough` where it numbers no places."""
    for name, module in model.named_modules():
        if name.endswith(("position_embeddings", ".wpe")) and isinstance(module, nn.Embedding):
            # RoBERTa and its kin number places from the padding token's id on.
            taken = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings - taken)
    return enough


def save_model(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Write model (safetensors) and tokenizer into the folder."""
    _quieten()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _agree_on_padding(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Let model and tokenizer have the same padding token: a decoder reads its answer before the first one."""
    if tokenizer.pad_token_id is None and model.config.pad_token_id is None:
        raise TeacherError(
            f"{folder}: neither the tokenizer nor config.json has a padding token. Give it one: "
            "tokenizer.pad_token = tokenizer.eos_token, then save the tokenizer there."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.pad_token_id)
    model.config.pad_token_id = tokenizer.pad_token_id


def _check_positions(taken: Pretrained, max_length: int, folder: Path) -> None:
    """Raise SpecError for texts that are longer than the model's table of positions, if its tokenizer does not."""
    config = AutoConfig.from_pretrained(taken.folder, trust_remote_code=False)
    places = getattr(config, "max_position_embeddings", None) or max_length + RESERVED
    if max_length <= places - RESERVED or taken.tokenizer().model_max_length <= places:
        return  # without loading the model
    if max_length > (most := count_positions(taken.model(), max_length)):
        raise SpecError(f"task.max_length: got {max_length}; the model of {folder} takes at most {most} tokens.")


def _reorder_outputs(model: PreTrainedModel, order: list[int]) -> None:
    """Let output i be what output order[i] was: in the head's last layer, which has a row for each label."""
    head = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == len(order)][-1]
    with torch.no_grad():
        head.weight.copy_(head.weight[order].clone())
        if head.bias is not None:
            head.bias.copy_(head.bias[order].clone())


def _quieten() -> None:
    """No progress bars for files that are read in a moment: the screen is kdray's."""
    disable_progress_bar()
    set_verbosity_error()


def _checked(folder: Path, setting: str) -> Path:
    if not (folder / "config.json").is_file():
        raise TeacherError(f"{setting} {folder}: no config.json in it; give the folder that save_pretrained wrote.")
    if any(folder.glob("*.safetensors")):
        return folder
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        raise TeacherError(
            f"{setting} {folder}: only pickled weights ({', '.join(pickled)}), which can run code when they are "
            f"loaded; kdray loads safetensors only. Convert them once with model.save_pretrained(folder)."
        )
    raise TeacherError(f"{setting} {folder}: no weights in it; model.safetensors is missing.")
