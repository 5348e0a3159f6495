"""What is known about the families of transformers' sequence classifiers, beside what their configuration says.

docs/models.md has a table of all families, with what was tried. `layers` knows how the layers of a family are counted.
"""

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, __version__
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from kdray.errors import TeacherError, did_you_mean
from kdray.networks.registered import OWN_TYPES
from kdray.safe_text.escaping import printable

GOOD = ("BERT", "RoBERTa", "DistilBERT", "ELECTRA", "MPNet", "DeBERTa-v2", "ALBERT", "ModernBERT")
"""Families that can teach and be made shallower, for messages."""
FAMILIES = frozenset(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
"""The model types for which transformers has a sequence classifier."""

VOCABULARY_HEADS: Mapping[str, frozenset[str]] = {
    "ForMaskedLM": frozenset(MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    "ForCausalLM": frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
}
"""The heads whose outputs are a vocabulary, as keys of `kdray.tasks.heads.HEADS` -> the model types that have one."""

END_TOKEN = "has an encoder and a decoder, and answers at the end token of a text, which not every input has"
IMAGES = "reads images beside the text"
PLACES = "reads the places of the words on a page beside the text"
KERNEL = "may download the kernel of its attention from the model hub"
REFUSED = {
    "canine": "reads characters, and no vocabulary says how many there are",
    "layoutlm": PLACES,
    "layoutlmv2": IMAGES,
    "layoutlmv3": IMAGES,
    "lilt": PLACES,
    "luke": "reads entities beside the text",
    "markuplm": "reads the paths of web pages beside the text",
    "mra": KERNEL,
    "perceiver": "reads bytes, and no vocabulary says how many there are",
    "tapas": "reads a table beside the question",
    "yoso": KERNEL,
}
"""Families with a sequence classifier that kdray does not accept, and why."""

DEPENDS_ON_PADDING = frozenset(("fnet", "nystromformer", "xlnet"))
"""Families whose answer for a text depends on the padding behind it: FNet has no attention mask, Nystromformer takes
means over parts of a padded text, and XLNet answers at the last place, which holds padding."""


def check_family(config: dict[str, Any], where: str) -> None:
    """Raise TeacherError if this configuration is not that of a classifier of texts that kdray can read."""
    family = config.get("model_type")
    if not family:
        raise TeacherError(
            f"{where}: config.json has no model_type, so it is not known which model this is. Give a folder that "
            "save_pretrained wrote."
        )
    if isinstance(family, str) and family in OWN_TYPES:
        return
    if not isinstance(family, str) or family not in CONFIG_MAPPING_NAMES:
        nearest = did_you_mean(str(family)[:60], CONFIG_MAPPING_NAMES, GOOD)
        raise TeacherError(
            f"{where}: config.json has model_type {printable(repr(family), 60)}, which transformers {__version__} does "
            f"not know; {nearest} A newer version of transformers may know it."
        )
    if family not in FAMILIES:
        raise TeacherError(
            f"{where}: {_named(config)} is no classifier of texts: transformers has none of this family. Give a model "
            f"such as {', '.join(GOOD)}."
        )
    if (reason := reason_against(family, bool(config.get("is_encoder_decoder")))) is not None:
        raise TeacherError(
            f"{where}: {_named(config)} is not accepted, because it {reason}. kdray gives a model the tokens of a text "
            f"and nothing else, and runs no code from elsewhere. Give a model such as {', '.join(GOOD)}."
        )


def reason_against(family: str, has_decoder: bool = False) -> str | None:
    """Why a family with a sequence classifier is not accepted, after the words "because it"; None if it is accepted."""
    default = CONFIG_MAPPING[family]()  # a file may leave out what its family has by default
    if has_decoder or default.is_encoder_decoder:
        return END_TOKEN
    return IMAGES if hasattr(default, "vision_config") else REFUSED.get(family)


def check_vocabulary_head(family: str, head: str, task: str, where: str) -> None:
    """Raise TeacherError if this head has the outputs of a vocabulary, and a model of this family has no such head.

    `task` is the name of the task.
    """
    families = VOCABULARY_HEADS.get(head)
    if families is None or family in families:
        return
    kinds = {"ForMaskedLM": ("masked_lm", "BERT or RoBERTa"), "ForCausalLM": ("causal_lm", "GPT-2 or Llama")}
    other = next((kind for name, (kind, _) in kinds.items() if family in VOCABULARY_HEADS[name]), None)
    change = f", or set task.kind={other}" if other else ""
    raise TeacherError(
        f"{where}: transformers has no head for {task} for a {family} model. Give a model such as "
        f"{kinds[head][1]}{change}."
    )


def depends_on_padding(family: str) -> bool:
    """Whether the answer of a model of this family for a text depends on the padding behind the text."""
    return family in DEPENDS_ON_PADDING


def _named(config: dict[str, Any]) -> str:
    """The model in words, such as `a vit model (ViTForImageClassification)`."""
    classes = config.get("architectures")
    named = f" ({printable(classes[0], 60)})" if isinstance(classes, list) and classes else ""
    return f"a {config['model_type']} model{named}"
