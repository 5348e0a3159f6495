"""Tokenizers for language models: those of `word_tokenizers`, with the special tokens that each kind of model has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tests.tasks import word_tokenizers

SPECIAL: dict[str, tuple[Callable[[Path], None], dict[str, str]]] = {
    "bert": (word_tokenizers.word_piece, {"mask_token": "[MASK]"}),
    "roberta": (word_tokenizers.roberta, {}),
    # A mask token, but no tokens around a text.
    "bare": (word_tokenizers.behind_a_splitter, {"mask_token": "<mask>", "pad_token": "<pad>"}),
    "albert": (word_tokenizers.unigram, {"mask_token": "[MASK]"}),
    "gpt2": (word_tokenizers.gpt2, {"bos_token": "<|end|>"}),
    "llama": (word_tokenizers.unigram, {"bos_token": "<s>"}),
    "qwen": (word_tokenizers.gpt2, {}),
    "none": (word_tokenizers.behind_a_splitter, {}),
}
"""Name -> what saves the tokenizer, and the special tokens that are added."""
MASKED = ("bert", "roberta", "bare", "albert")
CAUSAL = ("gpt2", "llama", "qwen", "none", "bert", "roberta")


def load(name: str, folder: Path) -> Any:
    """Make the tokenizer with this name, and load it as plain transformers does."""
    save, more = SPECIAL[name]
    save(folder / name)
    tokenizer = AutoTokenizer.from_pretrained(folder / name)
    tokenizer.add_special_tokens(more)
    return tokenizer
