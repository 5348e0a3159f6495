"""A tiny language model of each family, with random weights, and folders with a tokenizer of words."""

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from kdray.models.fresh import word_tokenizer
from tests.models.families import SIZES

MASKED = ("bert", "roberta", "distilbert", "albert", "mobilebert", "modernbert")
CAUSAL = ("gpt2", "llama", "qwen2", "gpt_neox")
LANGUAGE_FAMILIES = (*MASKED, *CAUSAL)
AUTO: dict[bool, Any] = {False: AutoModelForMaskedLM, True: AutoModelForCausalLM}
"""Whether a family is causal -> the class of transformers that loads it."""
OWN: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 8},
    "mobilebert": {"embedding_size": 8, "intra_bottleneck_size": 16, "num_feedforward_networks": 2},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8},
    "gpt2": {"n_inner": 48},
}
WORDS = [f"w{number}" for number in range(90)]


def language_config(family: str, tied: bool = True, **sizes: Any) -> Any:
    """The configuration of a model of four layers, four heads of eight numbers, and 100 tokens."""
    config_class = CONFIG_MAPPING[family]
    names, default = getattr(config_class, "attribute_map", None) or {}, config_class()
    common = {**SIZES, "vocab_size": 100, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4}
    common |= {"intermediate_size": 48, "tie_word_embeddings": tied}
    values = {names.get(name, name): size for name, size in common.items() if name in names or hasattr(default, name)}
    return config_class(**{**values, **OWN.get(family, {}), **sizes})


def language_model(family: str, tied: bool = True, seed: int = 0, **sizes: Any) -> PreTrainedModel:
    """A model in which every weight differs from its usual first value, norms and biases included."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AUTO[family in CAUSAL].from_config(language_config(family, tied, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def save_language_model(model: PreTrainedModel, folder: Path) -> str:
    """Save a model and a tokenizer of the words w0, w1, ...; causal models have one that adds no tokens."""
    model.save_pretrained(folder)
    is_causal = model.config.model_type in CAUSAL
    word_tokenizer([" ".join(WORDS)], 100, 60, is_causal).save_pretrained(folder)
    return str(folder)
