"""The model types that are part of kdray. An import of this module registers them with transformers.

`pretrained` imports it before any model is loaded. AutoConfig and the classes in `kdray.tasks.heads.HEADS` then find
these types by the `model_type` of a configuration, as they find their own, and run no code from the folder of a model.
"""

from collections.abc import Mapping

from transformers import AutoConfig

from kdray.networks.convolutional_model import (
    ConvolutionalConfig,
    ConvolutionalForSequenceClassification,
    ConvolutionalForTokenClassification,
)
from kdray.networks.encoder_model import EncoderConfig, EncoderModel
from kdray.networks.recurrent_model import (
    RecurrentConfig,
    RecurrentForSequenceClassification,
    RecurrentForTokenClassification,
)
from kdray.networks.static_model import StaticConfig, StaticForSequenceClassification
from kdray.tasks.heads import HEADS

Heads = Mapping[str, type[EncoderModel]]
"""A key of `kdray.tasks.heads.HEADS` -> the model with this head."""

OWN_MODELS: Mapping[type[EncoderConfig], Heads] = {
    RecurrentConfig: {
        "ForSequenceClassification": RecurrentForSequenceClassification,
        "ForTokenClassification": RecurrentForTokenClassification,
    },
    ConvolutionalConfig: {
        "ForSequenceClassification": ConvolutionalForSequenceClassification,
        "ForTokenClassification": ConvolutionalForTokenClassification,
    },
    StaticConfig: {"ForSequenceClassification": StaticForSequenceClassification},
}
"""The configuration of each type -> its models, by their heads."""

OWN_TYPES = frozenset(config.model_type for config in OWN_MODELS)
"""The values of `model_type` in config.json."""


def _register() -> None:
    for config, heads in OWN_MODELS.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        for head, model in heads.items():
            HEADS[head].register(config, model, exist_ok=True)


_register()
