"""What the small models of kdray have in common: an embedding table, an encoder of a family, and a linear head.

They are models of transformers, so they are trained, measured, saved (safetensors) and exported like any other. Each
family is a file with a configuration, an encoder, and a model for each head; `own_models` lists them.

A text stands at the beginning of its row, and padding only behind it. An answer does not depend on the padding, nor on
the other rows of the batch. Letters: B rows of a batch, L tokens, E embedding width, H width of the encoder, C outputs.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

SPREAD = 0.1
"""The standard deviation of drawn embeddings."""


class EncoderConfig(PreTrainedConfig):
    """The configuration that all families have in common."""

    vocab_size: int = 30522
    embedding_width: int = 128
    dropout: float | int = 0.0
    """The probability of a value to be dropped: of embeddings, between layers, and before the head."""
    pad_token_id: int | None = 0


class EncoderModel(PreTrainedModel):
    """Embeddings, an encoder, and a head with one answer for a text; see `TokenEncoderModel` for one for each token."""

    _input_embed_layer = "embeddings"
    output: ClassVar[Any] = SequenceClassifierOutput

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_width)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder: nn.Module = self.make_encoder(config)
        # The last module, because `output_layer` finds a head as the last linear layer with so many outputs.
        self.classifier = nn.Linear(self.encoder.width, config.num_labels)  # type: ignore[arg-type]
        self.post_init()

    def make_encoder(self, config: Any) -> nn.Module:
        """A module of (embeddings B x L x E, mask B x L) that gives features, B x H or B x L x H; H is its `width`."""
        raise NotImplementedError

    def encode(self, input_ids: Tensor, mask_BxL: Tensor) -> Tensor:
        """The features of the texts (B x H), or of their tokens (B x L x H)."""
        features: Tensor = self.encoder(self.dropout(self.embeddings(input_ids)), mask_BxL)
        return features

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **unused: Any) -> Any:
        """Compute the logits, B x C or B x L x C. Token types, which a tokenizer may give, are not used."""
        features = self.encode(input_ids, token_mask(input_ids, attention_mask))
        return self.output(logits=self.classifier(self.dropout(features)))

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The modules whose outputs are states of each token (B x L x H), in order."""
        return ()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw the weights of one module; transformers calls it for modules that have no weights yet."""
        match module:
            case nn.Embedding():
                init.normal_(module.weight, std=SPREAD)
            case nn.Linear() | nn.Conv1d():
                init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    # A head with a bias of 0 is known as new, see `losses.distribution.is_new`.
                    init.zeros_(module.bias)
            case nn.LayerNorm():
                init.ones_(module.weight)
                init.zeros_(module.bias)


class TokenEncoderModel(EncoderModel):
    """A model with one answer for each token."""

    output: ClassVar[Any] = TokenClassifierOutput


def token_mask(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Where the tokens of a text are (B x L, bool): each place before the padding.

    The first place counts as a token also in a row without any, because a mean over no tokens would be nan.
    """
    places_L = torch.arange(input_ids.shape[1], device=input_ids.device)
    if attention_mask is None:
        return (places_L >= 0).expand(input_ids.shape)
    return places_L < attention_mask.sum(dim=1, keepdim=True).clamp(min=1)


def masked_softmax(scores_BxL: Tensor, mask_BxL: Tensor) -> Tensor:
    """The softmax over the tokens of each text (B x L); padding has the weight 0."""
    lowest = torch.finfo(scores_BxL.dtype).min
    return scores_BxL.masked_fill(~mask_BxL, lowest).softmax(dim=1)


def masked_max(features_BxLxH: Tensor, mask_BxL: Tensor) -> Tensor:
    """The largest value of each feature over the tokens of each text (B x H)."""
    lowest = torch.finfo(features_BxLxH.dtype).min
    return features_BxLxH.masked_fill(~mask_BxL[:, :, None], lowest).amax(dim=1)
