"""Static models: the mean of the embeddings of a text, and layers above it (Joulin et al. 2016, arXiv:1607.01759).

The mean may have weights: one number for each token of the vocabulary is learnt, whatever stands around the token.
Letters: B rows of a batch, L tokens, E embedding width, H width of the hidden layers.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from kdray.networks.encoder_model import EncoderConfig, EncoderModel, masked_softmax


class StaticConfig(EncoderConfig):
    """The configuration of a static model."""

    model_type = "kdray_static"

    num_layers: int = 1
    """The number of hidden layers above the mean; 0: the head reads the mean itself."""
    width: int = 256
    """The width of the hidden layers."""
    weighted: bool = True
    """Whether the mean has weights that are learnt for each token of the vocabulary."""


class TokenScores(nn.Embedding):
    """One number for each token of the vocabulary: the weights of a mean are their softmax over the text."""

    def __init__(self, tokens: int) -> None:
        super().__init__(tokens, 1)


class MeanEncoder(nn.Module):
    """Hidden layers above the weighted mean of the embeddings: B x L x E -> B x H."""

    def __init__(self, config: StaticConfig) -> None:
        super().__init__()
        widths = [config.embedding_width, *[config.width] * config.num_layers]
        self.width = widths[-1]
        self.scores = TokenScores(config.vocab_size) if config.weighted else None
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, embeddings_BxLxE: Tensor, mask_BxL: Tensor, input_ids: Tensor) -> Tensor:
        """Compute one vector for each text."""
        zeros_BxL = embeddings_BxLxE.new_zeros(input_ids.shape)
        scores_BxL = zeros_BxL if self.scores is None else self.scores(input_ids)[:, :, 0]
        weights_BxL = masked_softmax(scores_BxL, mask_BxL)
        features = (weights_BxL[:, :, None] * embeddings_BxLxE).sum(dim=1)
        for layer in self.layers:
            features = layer(self.dropout(features)).relu()
        return features


class StaticForSequenceClassification(EncoderModel):
    """A static model with one answer for a text."""

    config_class = StaticConfig

    def make_encoder(self, config: Any) -> nn.Module:
        """See `EncoderModel`."""
        return MeanEncoder(config)

    def encode(self, input_ids: Tensor, mask_BxL: Tensor) -> Tensor:
        """See `EncoderModel`."""
        features: Tensor = self.encoder(self.dropout(self.embeddings(input_ids)), mask_BxL, input_ids)
        return features

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """See `EncoderModel`. All tokens begin with the same weight."""
        if isinstance(module, TokenScores):
            init.zeros_(module.weight)
        else:
            super()._init_weights(module)
