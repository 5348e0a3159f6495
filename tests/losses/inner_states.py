"""Random states of the layers of two models, for the tests of inner terms. Shapes: see `kdray.losses.states`."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kdray.losses.inner_term import AttentionTerm
from kdray.losses.inner_terms import INNER_TERMS
from kdray.losses.states import Attention

ATTENTION = {name: kind for name, kind in INNER_TERMS.items() if issubclass(kind, AttentionTerm)}
"""The terms that compare attention."""

LENGTHS = (5, 3, 1)
"""The numbers of tokens in the rows."""
B, L = len(LENGTHS), max(LENGTHS)
IS_TOKEN = torch.arange(L)[None, :] < torch.tensor(LENGTHS)[:, None]
N = sum(LENGTHS)
CAUSAL = torch.ones(L, L, dtype=torch.bool).tril()
LOCAL = (torch.arange(L)[:, None] - torch.arange(L)[None, :]).abs() <= 1
VECTORS = ("queries_BxAxLxD", "keys_BxAxLxD", "values_BxAxLxD")


def random_attention(seed: int, heads: int = 2, size: int = 6, dtype: Any = torch.float64) -> Attention:
    """The attention of a layer; the values have another width than queries and keys, as in some models."""
    generator = torch.Generator().manual_seed(seed)
    queries, keys, values = (
        torch.randn(B, heads, L, width, generator=generator, dtype=torch.float64).to(dtype)
        for width in (size, size, 2 * size)
    )
    return Attention(queries, keys, values, scaling=size**-0.5)


def random_hidden(seed: int, width: int = 6, layers: tuple[int, ...] = (1,)) -> dict[int, Tensor]:
    """The hidden states of these layers."""
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(B, L, width, generator=generator) for layer in layers}


def changed(attention: Attention, change: Any) -> Attention:
    """The same attention after a change of each of its three tensors."""
    return replace(attention, **{name: change(getattr(attention, name)) for name in VECTORS})


def with_padding(states: Tensor, padding: float) -> Tensor:
    """The same states with this number in all padding: B x L x H, or B x A x L x D."""
    is_padding = ~IS_TOKEN.unsqueeze(-1) if states.ndim == 3 else ~IS_TOKEN[:, None, :, None]
    return states.masked_fill(is_padding, padding)


def attention_term(name: str, student: Attention, teacher: Attention, heads: int | None = None) -> Tensor:
    """The term of each token (N); `heads` are the relation heads."""
    return ATTENTION[name](heads).values(student, teacher, IS_TOKEN)
