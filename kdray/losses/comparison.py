"""Comparison: the outputs of student and teacher that a soft term compares; Outcomes: the probabilities they mean.

Shapes: A answers, C outputs, K outcomes of which exactly one occurs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Weights: TypeAlias = Tensor | float
"""Factors of a term: one for all; one for each answer (A x 1); or one for each output (A x C), where the term is a mean
over the outputs."""

SMALLEST_SPREAD = 1e-7
"""What is added to the standard deviation of logits before they are divided by it (as in the code of Sun et al.)."""


def own_sum(values: Tensor) -> Tensor:
    """The sum over the workers of a slot with one worker: the values themselves."""
    return values


@dataclass(frozen=True)
class Comparison:
    """The outputs of a student and its teacher for the same answers, and how a soft term compares them."""

    student_AxC: Tensor
    teacher_AxC: Tensor
    temperature: float | Tensor = 1.0
    """A tensor without dimensions within `torch.vmap`, see `Factors`."""
    gold: Tensor | None = None
    """A or A x C, as the distribution reads it; None: no answer has gold."""
    weights: Weights = 1.0
    sum_over_workers: Callable[[Tensor], Tensor] = own_sum
    """A function that adds up the tensors that all workers of the slot give it, with gradients to all of them."""

    def standardized(self) -> Self:
        """The same comparison of logits that have mean 0 and standard deviation 1 over the outputs of each answer."""
        return replace(self, student_AxC=_standardized(self.student_AxC), teacher_AxC=_standardized(self.teacher_AxC))

    def classes(self) -> tuple["Outcomes", "Outcomes"]:
        """The probabilities of the C classes (A x C), of student and teacher, at the temperature."""
        return (
            Outcomes.of_classes(self.student_AxC / self.temperature),
            Outcomes.of_classes(self.teacher_AxC / self.temperature),
        )

    def labels(self) -> tuple["Outcomes", "Outcomes"]:
        """The probabilities that each label holds, or does not hold (A x C x 2), of student and teacher."""
        return (
            Outcomes.of_labels(self.student_AxC / self.temperature),
            Outcomes.of_labels(self.teacher_AxC / self.temperature),
        )


@dataclass(frozen=True)
class Outcomes:
    """Probabilities that add up to 1 over the last dimension, and their logarithms (... x K)."""

    probabilities: Tensor
    logs: Tensor

    @classmethod
    def of_classes(cls, logits_AxC: Tensor) -> Self:
        """The classes of a softmax: K = C."""
        logs_AxC = functional.log_softmax(logits_AxC, dim=-1)
        return cls(logs_AxC.exp(), logs_AxC)

    @classmethod
    def of_labels(cls, logits_AxC: Tensor) -> Self:
        """Each label as a variable of its own with the outcomes yes and no: A x C x 2."""
        # sigmoid(-x) = 1 - sigmoid(x): without this form, the logarithm of a probability near 1 would lose its digits.
        signed = logits_AxC, -logits_AxC
        # One after the other: within one tensor, the last digit depends on the place of a number in it.
        probabilities_AxCx2 = torch.stack([each_AxC.sigmoid() for each_AxC in signed], dim=-1)
        return cls(probabilities_AxCx2, torch.stack([functional.logsigmoid(each_AxC) for each_AxC in signed], dim=-1))


def _standardized(logits_AxC: Tensor) -> Tensor:
    centred_AxC = logits_AxC - logits_AxC.mean(dim=-1, keepdim=True)
    return centred_AxC / (logits_AxC.std(dim=-1, keepdim=True) + SMALLEST_SPREAD)
