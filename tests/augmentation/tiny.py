"""Tiny models with a vocabulary of film reviews: a teacher, and a masked language model."""

from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from kdray.augmentation.copying import Copier, CopyInputs
from kdray.augmentation.lexicon import Lexicon
from kdray.augmentation.settings import Augmentation
from kdray.augmentation.way import Way, WayInputs
from kdray.augmentation.ways import WAYS
from kdray.models.fresh import word_tokenizer
from kdray.models.pretrained import Pretrained, save_model

WORDS = [
    *(
        "the",
        "a",
        "film",
        "movie",
        "plot",
        "story",
        "cast",
        "script",
        "music",
        "with",
        "and",
        "of",
        "is",
        "was",
        "very",
    ),
    *("not", "good", "fine", "great", "warm", "witty", "bad", "poor", "dull", "cold", "stale", "ann", "bob", "oslo"),
    *("paris", "leaves", "likes", "watches", "loves", "好", "电", "影"),
]
"""Every one of them is a single token of the tiny models."""
TEXTS = (
    "The film is very good, and the plot was warm.",
    "a dull story with a poor cast",
    "Ann likes the music of Oslo; Bob loves PARIS!",
    "bad",
    "",
    "   ",
    "film\twith \n two  lines, unheard-of words and 👩‍🚀 emoji 🇳🇴",
    "电影好",
)


def save_tiny(folder: Path, model_class: Any) -> Path:
    """Save a BERT of this class with two layers and random weights, and its tokenizer, in the folder."""
    tokenizer = word_tokenizer([" ".join(WORDS)], 100, 64)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    save_model(model_class(config), tokenizer, folder)
    return folder


def save_teacher(folder: Path) -> Pretrained:
    """Save the tiny teacher in this folder."""
    return Pretrained(save_tiny(folder, BertForSequenceClassification), "teacher")


def save_masked_lm(folder: Path) -> Pretrained:
    """Save the tiny masked language model in this folder."""
    return Pretrained(save_tiny(folder, BertForMaskedLM), "masked")


def make_way(name: str, teacher: Pretrained, masked_lm: Pretrained, share: float | None = None) -> Way:
    """A way with the tiny models."""
    return WAYS[name](WayInputs(Lexicon(teacher), share, masked_lm))


def make_copier(teacher: Pretrained, masked_lm: Pretrained, **settings: Any) -> Copier:
    """A copier with these settings and the tiny models."""
    return Copier(CopyInputs(Augmentation(**settings), teacher, masked_lm))


def random_of(seed: object) -> Random:
    """Random numbers that depend on the seed alone."""
    return Random(str(seed))
