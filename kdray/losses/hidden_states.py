"""Terms that compare hidden states, token by token. Shapes: N tokens, H numbers of a state."""

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from kdray.losses.inner_term import HiddenTerm


class HiddenMSE(HiddenTerm):
    """The mean squared difference of hidden states: Jiao et al. 2020, arXiv:1909.10351, section 3.1."""

    name = "hidden_mse"

    def values(self, student_NxH: Tensor, teacher_NxH: Tensor) -> Tensor:
        """See `HiddenTerm`."""
        return (student_NxH - teacher_NxH).square().mean(dim=-1)


class HiddenCosine(HiddenTerm):
    """1 - the cosine of the angle between hidden states: Sanh et al. 2019, arXiv:1910.01108, section 2."""

    name = "hidden_cosine"

    def values(self, student_NxH: Tensor, teacher_NxH: Tensor) -> Tensor:
        """See `HiddenTerm`."""
        return 1 - functional.cosine_similarity(student_NxH, teacher_NxH, dim=-1)


class FirstToken(HiddenTerm):
    """The squared difference of the first token's normalised states: Sun et al. 2019, arXiv:1908.09355, section 3.2."""

    name = "hidden_first"
    of_first_token: ClassVar[bool] = True

    def values(self, student_NxH: Tensor, teacher_NxH: Tensor) -> Tensor:
        """See `HiddenTerm`."""
        difference_NxH = functional.normalize(student_NxH, dim=-1) - functional.normalize(teacher_NxH, dim=-1)
        return difference_NxH.square().sum(dim=-1)


class Embeddings(HiddenMSE):
    """The mean squared difference of the embeddings: Jiao et al. 2020, arXiv:1909.10351, section 3.1."""

    name = "embeddings"
    reads: ClassVar[frozenset[str]] = frozenset()
    of_embeddings: ClassVar[bool] = True
