"""A BERT of two layers with random weights that are large enough to give different outputs for different texts."""

from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

TINY: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "num_labels": 3,
}


def tiny_bert() -> PreTrainedModel:
    """The model, with the same weights in each call."""
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**TINY, initializer_range=0.5)).eval()
