"""The configuration of a model and its tokenizer, as a stranger wrote it: read, and refused where it asks for code.

transformers takes more from these files than sizes: names of kernels and classes that it downloads and runs, and files
elsewhere that it opens. kdray loads models that need none of that.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdray.errors import TeacherError
from kdray.models.json_files import MAX_CONFIG_BYTES, MAX_TOKENIZER_BYTES, read_object
from kdray.safe_text.escaping import printable

CONFIG = "config.json"
TOKENIZER_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")
"""The files whose entries become arguments of the tokenizer's class."""
TOKENIZER_FILES = ("tokenizer.json", "added_tokens.json", "vocab.json", "tekken.json")
"""The other JSON files of a tokenizer."""
OWN_CODE = ("auto_map", "custom_pipelines")
"""Entries that name Python code which a model brings along."""
IMPLEMENTATION = re.compile(r"_?(attn|experts)_implementation(_internal)?")
"""Entries that choose how a layer is computed: as part of transformers, or by a kernel from the model hub."""
OWN_IMPLEMENTATIONS = (None, "eager", "sdpa", "grouped_mm", "batched_mm")
"""The values of these entries that are part of transformers and torch."""
FETCHING = (
    "backbone",
    "compression_config",
    "fusion_config",
    "gguf_file",
    "init_inputs",
    "jumanpp_kwargs",
    "kernel_config",
    "mecab_kwargs",
    "quantization_config",
    "sudachi_kwargs",
    "transformers_weights",
    "use_kernels",
)
"""Other entries that make transformers open further files or models, or replace its layers by others."""
INLINE_OR_FILE = ("vocab", "merges")
"""Arguments of a tokenizer's class that are the words themselves, or the path of any file, which is then published."""
TOKENIZER_CLASS = re.compile(r"(?!AutoTokenizer|RagTokenizer)\w*(Tokenizer|TokenizerFast|Backend)", re.ASCII)
"""The names that a tokenizer's class may have: transformers loads any of its classes that has the given name.

RagTokenizer would load two tokenizers from other folders in the model folder."""

MOST = 100_000_000
"""The largest size in a configuration, such as its vocabulary or its number of positions."""
MOST_BY_NAME = {
    re.compile(r"num_labels|n_labels"): 100_000,
    re.compile(r"(.*_)?(layers?|blocks?|group_num)|block_sizes|block_repeats|attention_types"): 500,
    re.compile(r"(.*_)?(groups?|heads?)"): 1000,
    re.compile(r"(.*_)?experts?|attention_window|block_size|.*chunk_length|num_landmarks"): 20_000,
}
"""The largest value of entries with these names: transformers makes an object for each, or pads each text to it."""
UNLIMITED = re.compile(r".*(theta|base|scale|seed|factor|max_length|_ids?|id2label)")
"""Entries whose numbers do not decide how much memory a model needs."""


def read_configs(folder: Path, where: str) -> dict[str, Any]:
    """Read and check config.json and the tokenizer's configuration. Returns the content of config.json.

    Raises TeacherError, with `where` at the beginning of the message, for a file that is no JSON, for an entry that
    makes transformers run code or open other files, and for a number that no model has.
    """
    if not (folder / CONFIG).is_file():
        raise TeacherError(f"{where}: no config.json in it; give the folder that save_pretrained wrote.")
    config = read_object(folder / CONFIG, where, MAX_CONFIG_BYTES)
    _check_entries(config, where, CONFIG)
    _check_numbers(config, where)
    for name in TOKENIZER_CONFIGS:
        if (folder / name).is_file():
            _check_entries(read_object(folder / name, where, MAX_CONFIG_BYTES), where, name)
    return config


def check_tokenizer_files(folder: Path, where: str) -> None:
    """Raise TeacherError if a JSON file of the tokenizer is no JSON."""
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            read_object(folder / name, where, MAX_TOKENIZER_BYTES)


def _check_entries(config: dict[str, Any], where: str, file: str) -> None:
    for name, value in _entries(config):
        if name in OWN_CODE and value:
            raise TeacherError(
                f"{where}: {file} has {name}, so the model brings Python code of its own. No code from a model is run: "
                "give a model of a family that is part of transformers."
            )
        if _is_foreign(name, value):
            raise TeacherError(
                f"{where}: {file} has {name}={printable(repr(value), 80)}, which makes transformers run or open "
                "something outside of this folder, or load weights of another kind. Remove this entry, or save the "
                "model again without it."
            )


def _is_foreign(name: str, value: Any) -> bool:
    """Whether this entry leads transformers to code, kernels or files that are not in the folder."""
    if IMPLEMENTATION.fullmatch(name):
        return value not in OWN_IMPLEMENTATIONS if isinstance(value, str | None) else True
    if name == "tokenizer_class":
        return value is not None and not (isinstance(value, str) and TOKENIZER_CLASS.fullmatch(value))
    if name in INLINE_OR_FILE:
        return isinstance(value, str)
    if name == "fast_tokenizer_files":
        return not isinstance(value, list) or any(Path(str(each)).name != each for each in value)
    if name == "sp_model_kwargs":
        return isinstance(value, dict) and not value.keys().isdisjoint(("model_file", "model_proto"))
    return name in FETCHING and bool(value)


def _check_numbers(config: dict[str, Any], where: str) -> None:
    """Raise TeacherError for a number from which transformers would make too many objects, or too large a tensor."""
    for name, value in _entries(config):
        if UNLIMITED.fullmatch(name):
            continue
        most = next((most for pattern, most in MOST_BY_NAME.items() if pattern.fullmatch(name)), MOST)
        largest = max((abs(number) for number in _flatten(value) if type(number) in (int, float)), default=0)
        if largest > most:
            raise TeacherError(
                f"{where}: config.json has {printable(name, 60)}={printable(largest, 40)}; at most {most:,} is "
                "allowed, and no model has more. Correct the file, or save the model again."
            )


def _entries(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Name -> value for all entries, those of nested objects too."""
    for name, value in config.items():
        yield name, value
        for inner in _flatten(value):
            if isinstance(inner, dict):
                yield from _entries(inner)


def _flatten(value: Any) -> Iterator[Any]:
    """The values in lists of lists; any other value is itself."""
    if not isinstance(value, list):
        yield value
        return
    for inner in value:
        yield from _flatten(inner)
