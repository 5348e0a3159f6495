"""Which class of transformers loads a model with the head of a task."""

from collections.abc import Mapping
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

HEADS: Mapping[str, Any] = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForCausalLM": AutoModelForCausalLM,
}
"""The end of the name of an architecture -> the class that loads it. One output for a text, or one for each token."""

_OTHER_ENDS: Mapping[str, str] = {"LMHeadModel": "ForCausalLM"}
"""The end of the name of an architecture that is called otherwise, such as GPT2LMHeadModel -> a key of `HEADS`."""


def head_of(config: PreTrainedConfig) -> str | None:
    """The head that a configuration names, a key of `HEADS`; None for another head, or none."""
    return _head_in(str((config.architectures or [""])[0]))


def head_of_class(model: type[PreTrainedModel]) -> str:
    """The head of a model's class, a key of `HEADS`: in memory a configuration does not always name it."""
    return _head_in(model.__name__) or "ForSequenceClassification"


def auto_class(config: PreTrainedConfig) -> Any:
    """The class of transformers that loads a model with this configuration, which kdray has written."""
    return HEADS[head_of(config) or "ForSequenceClassification"]


def _head_in(architecture: str) -> str | None:
    found = (head for end, head in _OTHER_ENDS.items() if architecture.endswith(end))
    return next((head for head in HEADS if architecture.endswith(head)), next(found, None))
