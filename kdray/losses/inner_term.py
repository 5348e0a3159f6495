"""InnerTerm: the base class of the terms that compare the layers of a student with those of its teacher.

Each term is a class in a file of its own, or beside its relatives, a line in `inner_terms`, and the setting with its
weight in `InnerSettings`. Shapes: B rows, L tokens of the longest row, N tokens without padding, H hidden size.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from kdray.losses.states import Attention


class InnerTerm(ABC):
    """A way to compare one layer of a student with one layer of its teacher."""

    name: ClassVar[str]
    """The setting in `InnerSettings` that has its weight."""
    reads: ClassVar[frozenset[str]] = frozenset({"layer_map"})
    """The other settings in `InnerSettings` that change what it compares, besides those of all terms."""


class HiddenTerm(InnerTerm):
    """A term that compares hidden states; those of the student are projected to the teacher's width if it differs."""

    of_first_token: ClassVar[bool] = False
    """Whether it compares the first token of each row alone, instead of every token."""
    of_embeddings: ClassVar[bool] = False
    """Whether it compares the embeddings, instead of the layers that the layer map connects."""

    @abstractmethod
    def values(self, student_NxH: Tensor, teacher_NxH: Tensor) -> Tensor:
        """The term for each token (N): 0 where both are equal. The sizes are those of the teacher."""


class AttentionTerm(InnerTerm):
    """A term that compares what attention compared. The widths and the numbers of heads may differ."""

    def __init__(self, relation_heads: int | None = None) -> None:
        """`relation_heads` is the number of heads that relations are computed in; None: those of the teacher."""
        self.relation_heads = relation_heads

    @abstractmethod
    def values(self, student: Attention, teacher: Attention, is_token_BxL: Tensor) -> Tensor:
        """The term for each token that is no padding (N), in the order of `is_token_BxL`: 0 where both are equal.

        It is computed in float32, or in float64 if the states have it, outside of autocast.
        """
