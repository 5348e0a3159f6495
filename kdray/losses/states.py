"""States: what the layers of a model computed for a batch, as far as inner terms of the loss compare it.

Layers are numbered from 1; number 0 stands for the embeddings, which are the input of layer 1.
Shapes: B rows, L tokens of the longest row, H hidden size, A attention heads, D numbers of a head.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Attention:
    """What the self-attention of one layer compared: softmax(scaling * queries keys^T), applied to the values."""

    queries_BxAxLxD: Tensor
    keys_BxAxLxD: Tensor
    """With as many heads as the queries: keys that several heads share are repeated."""
    values_BxAxLxD: Tensor
    scaling: float
    allowed: Tensor | None = None
    """Whether a token (next to last dimension) may look at a token (last dimension); bool, broadcastable to
    B x A x L x L. None: all tokens of a row look at all of them. Padding need not be excluded here."""


@dataclass(frozen=True)
class States:
    """The states of some layers for the rows of a batch, padding included."""

    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    """Number of a layer -> its output, B x L x H."""
    attention: Mapping[int, Attention] = field(default_factory=dict)
    """Number of a layer -> what its attention compared."""


@dataclass(frozen=True)
class Needs:
    """The layers of a model whose states a loss reads."""

    hidden: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.hidden or self.attention)


@dataclass(frozen=True)
class InnerTargets:
    """What inner terms compare for a batch: the states of student and teacher at the same tokens."""

    student: States
    teacher: States
    is_token_BxL: Tensor
    """bool; False for padding."""
    token_weight: float
    """The number of answers in the batch of all workers, divided by the number of its tokens without padding. With this
    factor the sum of a term over tokens has the unit of a sum over answers."""
    row_weight: float
    """The same for a term with one value for each row."""
