"""Recordable: which states of a Transformer a `Recorder` can record, found by running the model once.

Shapes: B rows, L tokens, H hidden size; see also `kdray.losses.states`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdray.losses.states import Attention, Needs
from kdray.students.layers import transformer_layers
from kdray.students.recording import Recorder

TOKENS = 7
"""The tokens of a row. No model pads a text to a multiple of 7, so a layer that adds padding is found."""


@dataclass(frozen=True)
class Recordable:
    """What can be recorded of a model."""

    layers: int
    """The number of layers; 0 if no modules are layers."""
    hidden: bool
    """Whether each layer has one state for each token."""
    attention: Mapping[str, int]
    """Queries, keys, values -> their width, the numbers for each token in all heads. Empty if the attention of a layer
    cannot be recorded: the family does not use transformers' `AttentionInterface` (DeBERTa), or gives it more than
    queries, keys and a mask (Doge, and those in `recording.UNRECORDABLE`)."""
    heads: int
    """The number of attention heads; 0 if attention cannot be recorded."""
    is_causal: bool
    """Whether the first token of a text has seen no other token in any layer."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Recordable":
        """Run the model, in evaluation mode and with its weights, on two short rows with the same first token."""
        layers = transformer_layers(model)
        numbers = frozenset(range(len(layers) + 1))
        ids_BxL = _two_rows(model)
        with torch.no_grad(), Recorder(model, layers, Needs(numbers, numbers)) as recorder:
            model(input_ids=ids_BxL, attention_mask=torch.ones_like(ids_BxL))
            states = recorder.take()
        shapes = [value.shape[:-1] for value in states.hidden.values()]
        has_hidden = bool(layers) and shapes == [ids_BxL.shape] * len(numbers)
        last = states.attention.get(len(layers)) if len(states.attention) == len(layers) else None
        return cls(
            layers=len(layers),
            hidden=has_hidden,
            attention={} if last is None else _widths(last),
            heads=0 if last is None else last.queries_BxAxLxD.shape[1],
            is_causal=has_hidden and _are_equal(*states.hidden[len(layers)][:, 0]),
        )


def _two_rows(model: PreTrainedModel) -> Tensor:
    """Token ids (B x L) of two rows that differ in all tokens but the first one. None of them is padding."""
    others, padding = model.config.vocab_size - 1, model.config.pad_token_id or 0
    ids = [(padding + 1 + number % others) % (others + 1) for number in range(2 * TOKENS)]
    return torch.tensor([ids[:TOKENS], [ids[0], *ids[TOKENS + 1 :]]], device=model.device)


def _widths(attention: Attention) -> dict[str, int]:
    tensors = {
        "queries": attention.queries_BxAxLxD,
        "keys": attention.keys_BxAxLxD,
        "values": attention.values_BxAxLxD,
    }
    return {name: each.shape[1] * each.shape[3] for name, each in tensors.items()}


def _are_equal(one_H: Tensor, other_H: Tensor) -> bool:
    # Not exactly: a matrix product may add up the numbers of two rows in another order.
    return torch.allclose(one_H, other_H, rtol=1e-5, atol=1e-6)
