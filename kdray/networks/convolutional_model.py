"""Convolutional models: filters over a few neighbouring tokens.

A model with one answer for a text takes the largest value of each filter (Kim 2014, arXiv:1408.5882). A model with an
answer for each token has residual blocks whose filters reach farther from block to block (iterated dilated
convolutions, Strubell et al. 2017, arXiv:1702.02098); blocks can also stand before the filters of a text.

Letters: B rows of a batch, L tokens, E embedding width, H filters.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdray.networks.encoder_model import EncoderConfig, EncoderModel, TokenEncoderModel

DILATIONS = (1, 2, 4, 8)
"""The distances between the tokens that a filter of each block reads; the next block begins with 1 again. Four blocks
with filters of 3 tokens read 15 tokens on each side."""


class ConvolutionalConfig(EncoderConfig):
    """The configuration of a convolutional model."""

    model_type = "kdray_convolutional"

    num_blocks: int = 0
    """The number of dilated blocks."""
    kernel: int = 3
    """The number of tokens that a filter of a block reads; odd."""
    filters: int = 100
    """The number of filters of a block, and of each entry of `filter_widths`."""
    filter_widths: list[int] | tuple[int, ...] = (3, 4, 5)
    """The numbers of tokens that the filters of a text read; a model with an answer for each token has none of them."""


class DilatedBlock(nn.Module):
    """B x L x H -> B x L x H: x + dropout(relu(convolution(norm(x))))."""

    def __init__(self, filters: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(filters)
        # As much padding as a filter reads beyond the text, so that there are as many values as tokens.
        around = dilation * (kernel - 1) // 2
        self.convolution = nn.Conv1d(filters, filters, kernel, dilation=dilation, padding=around)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features_BxLxH: Tensor, mask_BxL: Tensor) -> Tensor:
        """Compute the features of the next block."""
        # Padding is 0 in each block, as the places before and behind the row are.
        inputs_BxLxH = self.norm(features_BxLxH) * mask_BxL[:, :, None]
        return features_BxLxH + self.dropout(self.convolution(inputs_BxLxH.mT).relu()).mT


class DilatedEncoder(nn.Module):
    """Dilated blocks: B x L x E -> B x L x H. Without blocks it gives the embeddings themselves."""

    def __init__(self, config: ConvolutionalConfig) -> None:
        super().__init__()
        self.width = config.filters if config.num_blocks else config.embedding_width
        self.projection = nn.Linear(config.embedding_width, config.filters) if config.num_blocks else nn.Identity()
        self.blocks = nn.ModuleList(
            DilatedBlock(config.filters, config.kernel, DILATIONS[number % len(DILATIONS)], config.dropout)
            for number in range(config.num_blocks)
        )

    def forward(self, embeddings_BxLxE: Tensor, mask_BxL: Tensor) -> Tensor:
        """Compute the features of the last block."""
        features_BxLxH: Tensor = self.projection(embeddings_BxLxE)
        for block in self.blocks:
            features_BxLxH = block(features_BxLxH, mask_BxL)
        return features_BxLxH


class FilterEncoder(nn.Module):
    """Filters of several widths, and the largest value of each over the text: B x L x E -> B x H."""

    def __init__(self, config: ConvolutionalConfig) -> None:
        super().__init__()
        self._widths = config.filter_widths
        self.blocks = DilatedEncoder(config)
        self.filters = nn.ModuleList(
            nn.Conv1d(self.blocks.width, config.filters, width) for width in config.filter_widths
        )
        self.width = config.filters * len(config.filter_widths)

    def forward(self, embeddings_BxLxE: Tensor, mask_BxL: Tensor) -> Tensor:
        """Compute one vector for each text."""
        mask_Bx1xL = mask_BxL[:, None, :]
        features_BxHxL = self.blocks(embeddings_BxLxE, mask_BxL).mT * mask_Bx1xL
        largest = []
        for width, convolution in zip(self._widths, self.filters, strict=True):
            # One value for each token, also of a text that is shorter than the filter.
            before = (width - 1) // 2
            padded = functional.pad(features_BxHxL, (before, width - 1 - before))
            # After ReLU no value is below 0, so 0 at the padding is never the largest one.
            largest.append((convolution(padded).relu() * mask_Bx1xL).amax(dim=2))
        return torch.cat(largest, dim=1)


class _ConvolutionalModel(EncoderModel):
    config_class = ConvolutionalConfig
    encoder_class: ClassVar[type[nn.Module]]

    def make_encoder(self, config: Any) -> nn.Module:
        """See `EncoderModel`."""
        return self.encoder_class(config)

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """See `EncoderModel`: the blocks. The filters of a text have no state of each token."""
        encoder = self.encoder.blocks if isinstance(self.encoder, FilterEncoder) else self.encoder
        assert isinstance(encoder, DilatedEncoder)
        return tuple(encoder.blocks)


class ConvolutionalForSequenceClassification(_ConvolutionalModel):
    """A convolutional model with one answer for a text."""

    encoder_class = FilterEncoder


class ConvolutionalForTokenClassification(_ConvolutionalModel, TokenEncoderModel):
    """A convolutional model with one answer for each token."""

    encoder_class = DilatedEncoder
