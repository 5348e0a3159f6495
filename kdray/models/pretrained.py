"""Finds a model in a local folder or on the model hub, checks it, and copies it into the storage's cache.

The model is a teacher, or a smaller checkpoint that students start from. Only safetensors weights are accepted, because
pickled ones can run code. The copy has the head and the labels of the task, and every slot on every node reads it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from kdray.errors import SpecError, TeacherError, first_line
from kdray.losses.distribution import output_layer
from kdray.models.checks import check_folder, check_safety, check_size, check_tokenizer, loading_errors
from kdray.models.families import VOCABULARY_HEADS, check_vocabulary_head
from kdray.models.folders import FILES, weights_fingerprint
from kdray.networks.registered import OWN_TYPES
from kdray.storage.files import fingerprint, replace_folder
from kdray.storage.mirror import fetch
from kdray.storage.paths import StoragePaths
from kdray.tasks.heads import HEADS, auto_class, head_of_class
from kdray.tasks.task import Task

RESERVED_POSITIONS = 2
"""The most entries of a table of positions that no token uses: RoBERTa numbers its tokens from 2 on."""


@dataclass(frozen=True)
class Pretrained:
    """A folder that transformers can load, and the fingerprint of its content."""

    folder: Path
    key: str

    def model(self) -> PreTrainedModel:
        """Load the model in float32 and evaluation mode, on the CPU. Raises TeacherError if that would not be safe."""
        _silence_transformers()
        folder = self._safe_folder()
        config = _config_in(folder)
        check_size(folder, outline(config))
        model: PreTrainedModel = auto_class(config).from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        )
        return model.eval()

    def tokenizer(self) -> Any:
        """Load the tokenizer. Raises TeacherError if that would not be safe."""
        return AutoTokenizer.from_pretrained(self._safe_folder(), trust_remote_code=False)

    def config(self) -> PreTrainedConfig:
        """Load the configuration. Raises TeacherError if that would not be safe."""
        return _config_in(self._safe_folder())

    def outline(self) -> PreTrainedModel:
        """The model without its weights: all modules and shapes, on torch's meta device, which needs no memory."""
        return outline(self.config())

    @property
    def is_plain(self) -> bool:
        """Whether transformers alone loads it; see `Student.is_plain`."""
        return self.config().model_type not in OWN_TYPES

    @property
    def layers(self) -> int:
        """The number of layers, read from config.json. Raises TeacherError for a model that is no Transformer."""
        config = self.config()
        if config.model_type in OWN_TYPES:
            raise TeacherError(
                f"student: a {config.model_type} model has no layers of a Transformer, so no transformer student is "
                "cut from it. It may teach students of other families (--set student.family=recurrent), and students "
                "that are built from another model (--set student.checkpoint=...)."
            )
        return int(config.num_hidden_layers)

    def _safe_folder(self) -> Path:
        # Checked at each load: a folder in a storage may have been changed by somebody else.
        folder = fetch(self.folder)
        check_safety(folder, "model")
        return folder


def find_model(name: str, revision: str | None, setting: str) -> Path:
    """The local folder of the model `name`: the folder itself, or a snapshot downloaded from the model hub.

    Raises TeacherError if there is no such folder or model, or if its files are not those of a classifier of texts in
    safetensors; `setting` is the setting with the name, for the message.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return check_folder(folder.absolute(), setting)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise TeacherError(f"{setting} {name}: no such folder. Give the folder of a saved model, or a model hub name.")
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise TeacherError(
            f"{setting} {name}: neither a local folder nor a model that the hub gave ({first_line(error)}). "
            f"Give a folder that holds config.json and model.safetensors, or check the name, --set and the network."
        ) from None
    return check_folder(folder, setting)


def cached_folder(cache: Path, make: Callable[[Path], None]) -> Path:
    """The folder `cache`; if it does not exist, `make` fills a temporary folder, which is then renamed to `cache`."""
    if not fetch(cache).exists():
        with replace_folder(cache) as folder:
            make(folder)
    return cache


@dataclass(frozen=True)
class Head:
    """The head that an imported model gets."""

    labels: tuple[str, ...]
    """The labels in the order of the outputs; empty for a head whose only output is a number."""
    outputs: tuple[str, ...] | None = None
    """The labels in the order of the outputs of the model's own head; None: the order of `labels`."""
    must_be_trained: bool = False
    """Whether a model is refused whose head is missing or has another number of outputs; otherwise a head is drawn."""


def import_model(folder: Path, task: Task, head: Head, paths: StoragePaths, seed: int) -> Pretrained:
    """Copy the model in this folder, with this head, into the storage's cache.

    A head that is missing, or that has another number of outputs, is drawn at random with `seed`. Raises TeacherError
    if transformers cannot load the folder, or if the head must be trained but is missing; SpecError if the model has
    fewer positions than `task.max_length`.
    """
    labels, order = list(head.labels), list(head.outputs or head.labels)
    key = fingerprint(weights_fingerprint(folder), labels, order, seed, *task.model_key)

    def make(target: Path) -> None:
        torch.manual_seed(seed)
        _silence_transformers()
        with loading_errors(folder, task.head):
            config = _config_in(folder)
            check_vocabulary_head(config.model_type, task.head, task.name, str(folder))
            check_size(folder, outline(config, HEADS[task.head]))
            model, random_weights = task.model(folder, labels)
            tokenizer = task.tokenizer(folder)
        _check_weights_fit(model, random_weights, folder)
        check_tokenizer(tokenizer, folder)
        if random_weights and head.must_be_trained:
            raise TeacherError(
                f"teacher.model {folder}: it has no trained head for {task.name} with {_outputs(labels, task)} "
                f"({', '.join(random_weights)} would be random). Fine-tune it: Teacher(..., training=Training())."
            )
        if order != labels:
            _reorder_outputs(model, [order.index(label) for label in labels])
        if task.is_causal:
            _check_direction(model, folder)
        _set_padding_token(model, tokenizer, folder)
        save_model(model, tokenizer, target)

    imported = Pretrained(cached_folder(paths.model(key), make), key)
    _check_positions(imported, task, folder)
    return imported


def count_positions(model: PreTrainedModel, enough: int) -> int:
    """The maximum number of tokens that the model's table of positions allows; `enough` if it has no such table."""
    for name, module in model.named_modules():
        if name.endswith(("position_embeddings", ".wpe")) and isinstance(module, nn.Embedding):
            # RoBERTa and similar models give their first token the position after the padding token's id.
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings - unused)
    return enough


def outline(config: PreTrainedConfig, head: Any = None) -> PreTrainedModel:
    """The model of this configuration without weights, on torch's meta device, which needs no memory.

    `head` is the class of transformers that adds the head; None: the one that the configuration names.
    """
    with torch.device("meta"), no_init_weights():
        model: PreTrainedModel = (head or auto_class(config)).from_config(config, trust_remote_code=False)
    return model


def save_model(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Write the model (as safetensors) and the tokenizer into the folder."""
    _silence_transformers()
    if model.can_generate() and model.generation_config is not None:
        # Without them, `generate` warns about padding, or goes on behind the end token of the trained texts.
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _outputs(labels: Sequence[str], task: Task) -> str:
    if task.head in VOCABULARY_HEADS:
        return "a vocabulary"
    return f"{len(labels)} labels" if labels else "one output"


def _config_in(folder: Path) -> PreTrainedConfig:
    config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return config


def _check_weights_fit(model: PreTrainedModel, random_weights: Sequence[str], folder: Path) -> None:
    """Raise TeacherError if the weight files are those of another model, so that most weights would be random."""
    names = sum(1 for _ in model.named_parameters())
    if len(random_weights) > names / 2:
        raise TeacherError(
            f"{folder}: {len(random_weights)} of the {names} weights that config.json describes are not in the weight "
            f"files, such as {random_weights[0]}. Give the config.json that was saved with these weights."
        )


def _check_direction(model: PreTrainedModel, folder: Path) -> None:
    """Raise TeacherError if the answer at a token depends on the tokens behind it, which it would have to predict."""
    last = model.config.vocab_size - 1
    ids_BxL = torch.tensor([[last, last // 2, last // 3], [last, last // 4, last // 5]])
    with torch.no_grad(), loading_errors(folder, "ForCausalLM"):
        one, other = model.eval()(input_ids=ids_BxL, attention_mask=torch.ones_like(ids_BxL)).logits[:, 0]
    if not torch.allclose(one, other, rtol=1e-4, atol=1e-5):
        raise TeacherError(
            f"{folder}: a {model.config.model_type} model reads a text in both directions, so it sees the tokens that "
            "a causal language model has to predict. Give a model such as GPT-2 or Llama, or set task.kind=masked_lm."
        )


def _set_padding_token(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Give the model and the tokenizer the same padding token. Raises TeacherError if both have none.

    A classifier that is a decoder computes its output at the last token before the padding, so a wrong padding token
    gives wrong outputs. For a language model nothing depends on it, so the end token takes its place if there is none.
    """
    if tokenizer.pad_token_id is None and model.config.pad_token_id is None:
        if head_of_class(type(model)) in VOCABULARY_HEADS and tokenizer.eos_token_id is not None:
            # Not in the configuration: models do not train the embedding of the padding token that it names.
            tokenizer.pad_token = tokenizer.eos_token
            return
        raise TeacherError(
            f"{folder}: neither the tokenizer nor config.json has a padding token. Give it one: "
            "tokenizer.pad_token = tokenizer.eos_token, then save the tokenizer there."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.pad_token_id)
    model.config.pad_token_id = tokenizer.pad_token_id


def _check_positions(imported: Pretrained, task: Task, folder: Path) -> None:
    """Raise SpecError if the model has fewer positions than `task.max_length` and its tokenizer does not know that.

    Without this check, a long text would end in an index error in the embedding. If the tokenizer knows the maximum
    length of the model, the task's `encode` raises the SpecError. A language model without a table of positions, such
    as Llama, would read any number of tokens, but was trained for those in its configuration.
    """
    config, max_length = _config_in(imported.folder), task.max_length
    positions = getattr(config, "max_position_embeddings", None) or max_length + RESERVED_POSITIONS
    if max_length <= positions - RESERVED_POSITIONS or imported.tokenizer().model_max_length <= positions:
        return  # decided by the small files alone: loading the model takes longer
    maximum = count_positions(imported.model(), max_length)
    if task.head in VOCABULARY_HEADS:
        maximum = min(maximum, positions)
    if max_length > maximum:
        what = f"{task.length_setting}: got {max_length}"
        raise SpecError(f"{what}; the model of {folder} takes at most {maximum} tokens.")


def _reorder_outputs(model: PreTrainedModel, order: list[int]) -> None:
    """Permute the outputs of the head: the new output i is the old output order[i]."""
    head = output_layer(model, len(order))
    with torch.no_grad():
        head.weight.copy_(head.weight[order].clone())
        if head.bias is not None:
            head.bias.copy_(head.bias[order].clone())


def _silence_transformers() -> None:
    """Switch off the progress bars and warnings of transformers, because kdray draws its own screen."""
    disable_progress_bar()
    set_verbosity_error()
