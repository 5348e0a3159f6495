"""Checks a model folder by its small files and the headers of its weights, before anything is loaded.

`find_model` makes all checks once; `Pretrained` makes those of `check_safety` at each load.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from kdray.errors import KDRayError, TeacherError, first_line
from kdray.models.config_files import CONFIG, check_tokenizer_files, read_configs
from kdray.models.families import check_family
from kdray.models.folders import check_files
from kdray.models.weight_files import count_stored_weights, weight_files
from kdray.safe_text.escaping import printable

ADAPTER = "adapter_config.json"
VOCABULARIES = (
    "tokenizer.json",
    "vocab.*",
    "vocab-*",
    "*.model",
    "*.codes",
    "*.tiktoken",
    "tekken.json",
    "*.tokenizer",
)
"""Patterns of the files with the vocabulary of a tokenizer; a tokenizer without one cannot read a word."""
ROOM = 10_000_000
"""Weights that a model may have more than twice the stored ones, such as a new head: 40 MB."""


def check_safety(folder: Path, where: str) -> None:
    """Raise TeacherError if loading this folder would run code, or open files outside of it.

    `where` is the beginning of the message: the setting with the folder.
    """
    check_files(folder, where)
    _refuse_adapter(folder, f"{where} {folder}")
    config = read_configs(folder, f"{where} {folder}")
    weight_files(folder, f"{where} {folder}")
    check_family(config, f"{where} {folder}")


def check_folder(folder: Path, setting: str) -> Path:
    """The folder itself. Raises TeacherError if its files are not those of a classifier of texts in safetensors."""
    where = f"{setting} {folder}"
    unreadable = [path for path in (folder, *folder.glob("*")) if not os.access(path, os.R_OK)]
    if unreadable and not unreadable[0].is_symlink():
        raise TeacherError(f"{where}: you may not read {unreadable[0]}. Change its permissions.")
    check_files(folder, setting)
    _refuse_adapter(folder, where)
    _refuse_trainer_output(folder, where)
    config = read_configs(folder, where)
    count_stored_weights(folder, where)
    check_family(config, where)
    check_tokenizer_files(folder, where)
    _check_vocabulary(folder, where)
    return folder


def check_size(folder: Path, outline: PreTrainedModel) -> None:
    """Raise TeacherError if config.json describes a far larger model than the stored weights: it would fill the memory.

    `outline` is the model that config.json describes, without weights.
    """
    described = sum(parameter.numel() for parameter in outline.parameters())
    stored = count_stored_weights(folder, str(folder))
    if described > 2 * stored + ROOM:
        raise TeacherError(
            f"{folder}: config.json describes a model of {described:,} weights, but the weight files have {stored:,}. "
            "Give the config.json that was saved with these weights."
        )


def check_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Raise TeacherError if the tokenizer has no words."""
    special = len(set(tokenizer.all_special_tokens))
    if len(tokenizer) <= special:
        raise TeacherError(
            f"{folder}: its tokenizer knows no word, only {special} special tokens, so its vocabulary is missing. Save "
            "the tokenizer that the model was trained with there: tokenizer.save_pretrained(folder)."
        )


@contextmanager
def errors_of_transformers(problem: str, remedy: str) -> Iterator[None]:
    """Raise TeacherError, as `problem (the error). remedy`, in place of any error that the block raises.

    transformers may raise an error of any class for a model that is not right. Errors of kdray stay as they are.
    """
    try:
        yield
    except KDRayError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {printable(first_line(error), 200)}"
        raise TeacherError(f"{problem} ({reason}). {remedy}") from error


def loading_errors(folder: Path, head: str = "ForSequenceClassification") -> AbstractContextManager[None]:
    """Raise TeacherError in place of any error of transformers while it loads this folder with this head."""
    return errors_of_transformers(
        f"{folder}: transformers cannot load this model or its tokenizer",
        f"Check that AutoModel{head} and AutoTokenizer load this folder.",
    )


def _refuse_adapter(folder: Path, where: str) -> None:
    if (folder / ADAPTER).is_file():
        raise TeacherError(
            f"{where}: {ADAPTER} in it, so this is a PEFT adapter, which changes another model. Merge both once, "
            "AutoPeftModelForSequenceClassification.from_pretrained(folder).merge_and_unload().save_pretrained(other), "
            "save the tokenizer there, too, and give that folder."
        )


def _refuse_trainer_output(folder: Path, where: str) -> None:
    """Raise TeacherError for the output folder of transformers' Trainer that holds checkpoints, but no model itself."""
    checkpoints = [path for path in folder.glob("checkpoint-*") if (path / CONFIG).is_file()]
    if checkpoints and not (folder / CONFIG).is_file():
        # By length first: checkpoint-1000 comes after checkpoint-500.
        last = max(checkpoints, key=lambda path: (len(path.name), path.name))
        raise TeacherError(
            f"{where}: no config.json in it, but {len(checkpoints)} checkpoints of a Trainer. Give one of them: the "
            f"last one is {printable(last, 300)}; trainer_state.json in it names the best one (best_model_checkpoint)."
        )


def _check_vocabulary(folder: Path, where: str) -> None:
    """Raise TeacherError if there is no vocabulary; transformers would make a tokenizer that knows no word."""
    if not any(path.is_file() for pattern in VOCABULARIES for path in folder.glob(pattern)):
        raise TeacherError(
            f"{where}: no tokenizer in it: there is neither tokenizer.json nor another vocabulary. Save the tokenizer "
            "that the model was trained with there: tokenizer.save_pretrained(folder)."
        )
