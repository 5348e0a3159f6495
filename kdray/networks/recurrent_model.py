"""Recurrent models: layers of an LSTM or a GRU that read a text in both directions.

Letters: B rows of a batch, L tokens, E embedding width, H width of one direction.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init

from kdray.networks.encoder_model import EncoderConfig, EncoderModel, TokenEncoderModel, masked_max, masked_softmax
from kdray.networks.recurrent_onnx import onnx_states

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class RecurrentConfig(EncoderConfig):
    """The configuration of a recurrent model."""

    model_type = "kdray_recurrent"

    cell: Literal["lstm", "gru"] = "lstm"
    num_layers: int = 1
    width: int = 256
    """The width of one direction."""
    pooling: Literal["last", "max", "attention"] = "max"
    """How a text gets one vector; a model with an answer for each token does not use it."""


class RecurrentLayer(nn.Module):
    """One layer of both directions: B x L x E -> B x L x 2H.

    Two layers of one direction instead of torch's layer of two: that layer begins to read backwards in the padding,
    unless the rows are packed, which takes up to 90 % longer in training on a CPU, and cannot be exported to ONNX.
    """

    def __init__(self, cell: str, inputs: int, width: int) -> None:
        super().__init__()
        self.forwards = CELLS[cell](inputs, width, batch_first=True)
        self.backwards = CELLS[cell](inputs, width, batch_first=True)

    def forward(self, inputs_BxLxE: Tensor, mask_BxL: Tensor) -> Tensor:
        """Compute the states; those of padding have no meaning."""
        if torch.compiler.is_exporting():
            return onnx_states(self.forwards, self.backwards, inputs_BxLxE, mask_BxL.sum(dim=1))
        reversed_BxL = reversed_places(mask_BxL)
        ahead_BxLxH, _ = self.forwards(inputs_BxLxE)
        back_BxLxH, _ = self.backwards(_reorder(inputs_BxLxE, reversed_BxL))
        return torch.cat([ahead_BxLxH, _reorder(back_BxLxH, reversed_BxL)], dim=-1)


class RecurrentEncoder(nn.Module):
    """Layers that read in both directions, with dropout between them."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.width = 2 * config.width
        widths = [config.embedding_width, *[self.width] * (config.num_layers - 1)]
        self.layers = nn.ModuleList(RecurrentLayer(config.cell, width, config.width) for width in widths)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, embeddings_BxLxE: Tensor, mask_BxL: Tensor) -> Tensor:
        """Compute the states of the last layer (B x L x 2H)."""
        states = embeddings_BxLxE
        for number, layer in enumerate(self.layers):
            states = layer(self.dropout(states) if number else states, mask_BxL)
        return states


class LastStates(nn.Module):
    """The state of each direction after it has read the text: B x L x 2H -> B x 2H."""

    def forward(self, states_BxLxH: Tensor, mask_BxL: Tensor) -> Tensor:
        ahead, back = states_BxLxH.chunk(2, dim=-1)
        last_Bx1x1 = mask_BxL.sum(dim=1)[:, None, None] - 1
        return torch.cat([ahead.gather(1, last_Bx1x1.expand(-1, 1, ahead.shape[-1]))[:, 0], back[:, 0]], dim=-1)


class LargestStates(nn.Module):
    """The largest value of each state over the tokens (Conneau et al. 2017, arXiv:1705.02364)."""

    def forward(self, states_BxLxH: Tensor, mask_BxL: Tensor) -> Tensor:
        return masked_max(states_BxLxH, mask_BxL)


class AttendedStates(nn.Module):
    """The mean of the states with weights that are learnt: softmax of u tanh(W h + b) (Yang et al. 2016, NAACL)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, states_BxLxH: Tensor, mask_BxL: Tensor) -> Tensor:
        scores_BxL = self.score(self.projection(states_BxLxH).tanh())[:, :, 0]
        weights_BxL = masked_softmax(scores_BxL, mask_BxL)
        return (weights_BxL[:, :, None] * states_BxLxH).sum(dim=1)


class PooledRecurrentEncoder(RecurrentEncoder):
    """The encoder of a model with one answer for a text: B x L x E -> B x 2H."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        match config.pooling:
            case "last":
                self.pooling: nn.Module = LastStates()
            case "max":
                self.pooling = LargestStates()
            case "attention":
                self.pooling = AttendedStates(self.width)

    def forward(self, embeddings_BxLxE: Tensor, mask_BxL: Tensor) -> Tensor:
        """Compute one vector for each text (B x 2H)."""
        pooled: Tensor = self.pooling(super().forward(embeddings_BxLxE, mask_BxL), mask_BxL)
        return pooled


class _RecurrentModel(EncoderModel):
    config_class = RecurrentConfig
    encoder_class: ClassVar[type[RecurrentEncoder]]

    def make_encoder(self, config: Any) -> nn.Module:
        """See `EncoderModel`."""
        return self.encoder_class(config)

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """See `EncoderModel`."""
        assert isinstance(self.encoder, RecurrentEncoder)
        return tuple(self.encoder.layers)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """See `EncoderModel`. A cell gets orthogonal weights between its states, and remembers at first.

        The forget gate of an LSTM begins with a bias of 1 (Jozefowicz et al. 2015, "An Empirical Exploration of
        Recurrent Network Architectures").
        """
        super()._init_weights(module)
        if not isinstance(module, nn.RNNBase) or getattr(module, "_is_hf_initialized", False):
            return
        for name, parameter in module.named_parameters():
            # The gates of a cell stand in one matrix; each gate is drawn by itself.
            for gate, part in enumerate(parameter.split(module.hidden_size)):
                if name.startswith("weight_ih"):
                    init.xavier_uniform_(part)
                elif name.startswith("weight_hh"):
                    init.orthogonal_(part)
                else:
                    is_forget_gate = isinstance(module, nn.LSTM) and gate == 1 and name.startswith("bias_ih")
                    init.constant_(part, float(is_forget_gate))


class RecurrentForSequenceClassification(_RecurrentModel):
    """A recurrent model with one answer for a text."""

    encoder_class = PooledRecurrentEncoder


class RecurrentForTokenClassification(_RecurrentModel, TokenEncoderModel):
    """A recurrent model with one answer for each token."""

    encoder_class = RecurrentEncoder


def reversed_places(mask_BxL: Tensor) -> Tensor:
    """For each place the place that it has in the reversed text (B x L); padding stays where it is.

    A text of 3 tokens and 2 of padding: 2 1 0 3 4. Used twice, it gives the order of the text again.
    """
    places_BxL = torch.arange(mask_BxL.shape[1], device=mask_BxL.device).expand_as(mask_BxL)
    return torch.where(mask_BxL, mask_BxL.sum(dim=1, keepdim=True) - 1 - places_BxL, places_BxL)


def _reorder(values_BxLxH: Tensor, places_BxL: Tensor) -> Tensor:
    """The values at these places of each row."""
    return values_BxLxH.gather(1, places_BxL[:, :, None].expand(-1, -1, values_BxLxH.shape[-1]))
