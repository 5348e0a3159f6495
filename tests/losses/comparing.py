"""The soft term of two models, for the tests of this folder. Shapes: A answers, C outputs."""

from typing import Any

from torch import Tensor

from kdray.losses.comparison import Comparison
from kdray.losses.distillation import Distillation
from kdray.losses.distribution import Distribution
from kdray.losses.soft_term import SoftTerm

KL = Distillation().soft_term


def soft_loss(
    distribution: Distribution, student: Tensor, teacher: Tensor, temperature: float = 1.0, term: SoftTerm = KL
) -> Tensor:
    """The soft term of each answer (A), of logits (A x C)."""
    return distribution.soft_loss(Comparison(student, teacher, temperature), term)


def term_named(name: str, **settings: Any) -> SoftTerm:
    """The term with this name."""
    return Distillation(soft=name, **settings).soft_term
