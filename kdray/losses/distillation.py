"""The loss of a student: `alpha` * soft + (1 - `alpha`) * hard + `logit_mse` * logit MSE, and the share of each term.

`logits` computes the terms; `kdray.training` takes the mean over the examples and over the workers.
Shapes: B examples, C classes.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from kdray.errors import SpecError
from kdray.losses.logits import hard_loss, logit_mse, soft_loss
from kdray.settings import Settings


@dataclass(frozen=True)
class Loss:
    """The loss of a batch."""

    total_B: Tensor
    """The loss of each example."""
    terms: dict[str, Tensor]
    """Name of a term -> its weighted sum over the batch, without gradient. The terms add up to the sum of `total_B`."""


class Distillation(Settings):
    """The weights of the terms that compare a student with the teacher's outputs and with the labels."""

    temperature: float = Field(2.0, gt=0)
    """The logits of teacher and student are divided by it before the soft loss compares their distributions."""
    alpha: float = Field(0.5, ge=0, le=1)
    """The weight of the soft loss; the hard loss has 1 - alpha. 1: labels have no effect; 0: soft targets have none."""
    logit_mse: float = Field(0.0, ge=0)
    """The weight of the mean squared difference of the logits, which is added to the other terms."""

    def labels_only(self) -> "Distillation":
        """The same settings with weight 0 for all terms that compare a student with the teacher.

        A new term of that kind must be set to 0 here.
        """
        return self.model_copy(update={"alpha": 0.0, "logit_mse": 0.0})

    @property
    def needs_teacher(self) -> bool:
        """Whether a term with a weight above 0 compares a student with the teacher."""
        return self.alpha > 0 or self.logit_mse > 0

    def loss(self, student_logits_BxC: Tensor, teacher_logits_BxC: Tensor | None, labels_B: Tensor) -> Loss:
        """Compute the loss in float32, also under autocast; a term of weight 0 is not computed.

        Raises SpecError if a term needs the teacher's logits and `teacher_logits_BxC` is None.
        """
        if self.needs_teacher and teacher_logits_BxC is None:
            raise SpecError(
                f"distillation: alpha {self.alpha:g} and logit_mse {self.logit_mse:g} need the teacher's logits, "
                f"and these rows have none. Give rows with logits, or set both to 0."
            )
        # bf16 keeps eight bits of a number: too few for the differences of logits.
        with torch.autocast(student_logits_BxC.device.type, enabled=False):
            teacher_BxC = None if teacher_logits_BxC is None else teacher_logits_BxC.float()
            terms_B = self._terms(student_logits_BxC.float(), teacher_BxC, labels_B)
        total_B = torch.stack(list(terms_B.values())).sum(dim=0)
        return Loss(total_B, {name: term_B.detach().sum() for name, term_B in terms_B.items()})

    def _terms(self, student_BxC: Tensor, teacher_BxC: Tensor | None, labels_B: Tensor) -> dict[str, Tensor]:
        """Name of a term -> its weighted value for each example."""
        terms_B: dict[str, Tensor] = {}
        if teacher_BxC is not None and self.alpha > 0:
            terms_B["soft"] = self.alpha * soft_loss(student_BxC, teacher_BxC, self.temperature)
        if self.alpha < 1:
            terms_B["hard"] = (1 - self.alpha) * hard_loss(student_BxC, labels_B)
        if teacher_BxC is not None and self.logit_mse > 0:
            terms_B["logit_mse"] = self.logit_mse * logit_mse(student_BxC, teacher_BxC)
        return terms_B
