"""Tiny language models of several families, and batches for them. Shapes: B rows, L tokens, A answers."""

from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from kdray.data.rows import Batch
from tests.models import families

V = 96
SIZES: dict[str, Any] = families.SIZES | {"vocab_size": V, "num_hidden_layers": 2, "initializer_range": 0.3}
"""Sizes by their common names. The weights are so large that the logits of a tiny model differ."""
MASKED = ("bert", "roberta", "distilbert", "albert", "modernbert", "mobilebert")
CAUSAL = ("gpt2", "llama", "gemma2", "cohere", "granite")
OWN: dict[str, dict[str, Any]] = {"granite": {"logits_scaling": 8.0}, "mobilebert": {"intra_bottleneck_size": 16}}


def language_model(family: str, **changes: Any) -> PreTrainedModel:
    """A tiny model of this family with random weights, in training mode."""
    config_class = CONFIG_MAPPING[family]
    names = getattr(config_class, "attribute_map", None) or {}
    known = config_class().to_dict()
    sizes = {names.get(name, name): size for name, size in SIZES.items() if name in names or name in known}
    config = config_class(**(sizes | OWN.get(family, {}) | changes))
    torch.manual_seed(0)
    kind = AutoModelForMaskedLM if family in MASKED else AutoModelForCausalLM
    model: PreTrainedModel = kind.from_config(config)
    return model.train()


def batch_of(rows: int = 3, length: int = 9, answers: int = 11, top_k: int | None = 5) -> Batch:
    """Rows with padding, and answers at some of their tokens; the first one has no gold."""
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(5, V, (rows, length), generator=random)
    is_token = torch.ones_like(ids)
    is_token[-1, length - 3 :] = 0
    places = torch.randperm(rows * length - 3, generator=random)[:answers].sort().values
    gold = torch.randint(5, V, (answers,), generator=random)
    gold[:1] = -1
    inputs = {"input_ids": ids * is_token, "attention_mask": is_token}
    return Batch(inputs, gold, np.arange(rows), places, top_k=top_k)
