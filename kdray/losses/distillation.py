"""The loss a student is trained with: `alpha` soft + (1 - `alpha`) hard + `logit_mse` logit MSE, and each term's part.

What each term computes stands in `logits`; the mean over examples, and over workers, is `training`'s.
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
    """Of each example."""
    terms: dict[str, Tensor]
    """Each term's weighted sum over the batch, without gradient: they sum to the sum of `total_B`."""


class Distillation(Settings):
    """How the teacher's outputs and the labels are weighed."""

    temperature: float = Field(2.0, gt=0)
    """Softens both distributions before they are compared."""
    alpha: float = Field(0.5, ge=0, le=1)
    """1: learn from the teacher's distribution alone; 0: from the labels alone."""
    logit_mse: float = Field(0.0, ge=0)
    """The weight of the squared difference of the logits, which is added."""

    def labels_only(self) -> "Distillation":
        """The same settings with the weight of every term that compares with the teacher at 0."""
        return self.model_copy(update={"alpha": 0.0, "logit_mse": 0.0})

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with the teacher."""
        return self.alpha > 0 or self.logit_mse > 0

    def loss(self, student_logits_BxC: Tensor, teacher_logits_BxC: Tensor | None, labels_B: Tensor) -> Loss:
        """The loss in float32, also under autocast; a term of weight 0 is not computed.

        Raises SpecError when the teacher's logits are needed and not there.
        """
        if self.needs_teacher and teacher_logits_BxC is None:
            raise SpecError(
                f"distillation: alpha {self.alpha:g} and logit_mse {self.logit_mse:g} need the teacher's logits, "
                f"and these rows have none. Give rows with logits, or set both to 0."
            )
        with torch.autocast(student_logits_BxC.device.type, enabled=False):
            teacher_BxC = None if teacher_logits_BxC is None else teacher_logits_BxC.float()
            terms_B = self._terms(student_logits_BxC.float(), teacher_BxC, labels_B)
        total_B = torch.stack(list(terms_B.values())).sum(dim=0)
        return Loss(total_B, {name: term_B.detach().sum() for name, term_B in terms_B.items()})

    def _terms(self, student_BxC: Tensor, teacher_BxC: Tensor | None, labels_B: Tensor) -> dict[str, Tensor]:
        terms_B: dict[str, Tensor] = {}
        if teacher_BxC is not None and self.alpha > 0:
            terms_B["soft"] = self.alpha * soft_loss(student_BxC, teacher_BxC, self.temperature)
        if self.alpha < 1:
            terms_B["hard"] = (1 - self.alpha) * hard_loss(student_BxC, labels_B)
        if teacher_BxC is not None and self.logit_mse > 0:
            terms_B["logit_mse"] = self.logit_mse * logit_mse(student_BxC, teacher_BxC)
        return terms_B
