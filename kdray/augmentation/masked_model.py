"""A masked language model: found, checked like any other model, copied into the storage's cache, and loaded.

The copy is what slots on other nodes read; `kdray.models.pretrained` does the same for models with the head of a task.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from kdray.errors import TeacherError
from kdray.models.checks import check_size, errors_of_transformers
from kdray.models.folders import weights_fingerprint
from kdray.models.pretrained import Pretrained, cached_folder, find_model, outline, save_model
from kdray.storage.files import fingerprint
from kdray.storage.mirror import fetch
from kdray.storage.paths import StoragePaths

SETTING = "augmentation.model"
EXAMPLES = "bert-base-cased, roberta-base or distilbert-base-uncased"


def import_masked_lm(name: str, revision: str | None, paths: StoragePaths) -> Pretrained:
    """Copy the masked language model `name`, a local folder or a hub name, into the storage's cache.

    Raises TeacherError for what `find_model` refuses, for a model without a trained head for masked words, and for a
    tokenizer without a mask token or without the places of its tokens in a text.
    """
    folder = find_model(name, revision, SETTING)
    key = fingerprint("masked language model", weights_fingerprint(folder))

    def make(target: Path) -> None:
        with errors_of_transformers(
            f"{SETTING} {folder}: transformers cannot load it as a masked language model",
            f"Check that AutoModelForMaskedLM loads this folder, or give a model such as {EXAMPLES}.",
        ):
            model, random_weights = _load(folder)
            tokenizer = Pretrained(folder, "").tokenizer()
        _check(tokenizer, random_weights, folder)
        save_model(model, tokenizer, target)

    return Pretrained(cached_folder(paths.model(key), make), key)


def load_masked_lm(stored: Pretrained, device: str) -> PreTrainedModel:
    """Load an imported model in float32 and evaluation mode. Raises TeacherError if that would not be safe."""
    model, _ = _load(fetch(stored.folder))
    return model.to(device).eval()


def _load(folder: Path) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The model in float32, and the names of the weights that were drawn at random."""
    disable_progress_bar()
    set_verbosity_error()
    # This checks the folder at each load: in a storage, somebody else may have changed it.
    config = Pretrained(folder, "").config()
    check_size(folder, outline(config, AutoModelForMaskedLM))
    model, loading_info = AutoModelForMaskedLM.from_pretrained(
        folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
    )
    return model, tuple(sorted(map(str, (*loading_info["missing_keys"], *loading_info["mismatched_keys"]))))


def _check(tokenizer: Any, random_weights: tuple[str, ...], folder: Path) -> None:
    if random_weights:
        raise TeacherError(
            f"{SETTING} {folder}: it has no trained head for masked words ({', '.join(random_weights[:5])} would be "
            f"random). Give a masked language model, such as {EXAMPLES}."
        )
    if tokenizer.mask_token_id is None or not tokenizer.is_fast:
        lacks = "mask token" if tokenizer.mask_token_id is None else "file tokenizer.json"
        raise TeacherError(
            f"{SETTING} {folder}: its tokenizer has no {lacks}, so words cannot be masked in a text. Give a model such "
            f"as {EXAMPLES}."
        )
