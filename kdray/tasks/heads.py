"""Which class of transformers loads a model with the head of a task."""

from collections.abc import Mapping
from typing import Any

from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

HEADS: Mapping[str, Any] = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
}
"""The end of the name of an architecture -> the class that loads it. One output for a text, or one for each token."""


def head_of(config: PreTrainedConfig) -> str | None:
    """The head that a configuration names, a key of `HEADS`; None for another head, or none."""
    architecture = str((config.architectures or [""])[0])
    return next((head for head in HEADS if architecture.endswith(head)), None)


def head_of_class(model: type[PreTrainedModel]) -> str:
    """The head of a model's class, a key of `HEADS`: in memory a configuration does not always name it."""
    return next((head for head in HEADS if model.__name__.endswith(head)), "ForSequenceClassification")


def auto_class(config: PreTrainedConfig) -> Any:
    """The class of transformers that loads a model with this configuration, which kdray has written."""
    return HEADS[head_of(config) or "ForSequenceClassification"]
