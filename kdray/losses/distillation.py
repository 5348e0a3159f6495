"""The loss of a student: `alpha` * soft + (1 - `alpha`) * hard + `logit_mse` * logit MSE, and the share of each term.

Where the teacher contradicts the gold, `alpha` and `logit_mse` are multiplied by `trust`.

A `Distribution` computes the terms; `kdray.training` takes the mean over the answers and over the workers.
Shapes: A answers of a batch, C outputs.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from kdray.errors import SpecError
from kdray.losses.distribution import Distribution, Weights, mean_squared_difference
from kdray.settings import Settings, later_field


@dataclass(frozen=True)
class Loss:
    """The loss of a batch."""

    total_A: Tensor
    """The loss of each answer."""
    terms: dict[str, Tensor]
    """Name of a term -> its weighted sum over the batch, without gradient. The terms add up to the sum of `total_A`."""


@dataclass(frozen=True)
class Targets:
    """What the outputs of a student are compared with, for the answers of a batch."""

    gold: Tensor
    """A or A x C, as the distribution reads it."""
    teacher_AxC: Tensor | None = None
    """The teacher's outputs; None: these rows have none."""
    gold_weight: float = 1.0
    """The number of answers in the batch of all workers, divided by the number of those that have gold. With this
    factor the hard term is a mean over the answers with gold, as the soft term is one over all answers."""


class Distillation(Settings):
    """The weights of the terms that compare a student with the teacher's outputs and with the labels."""

    temperature: float = Field(2.0, gt=0)
    """The logits of teacher and student are divided by it before the soft loss compares their distributions."""
    alpha: float = Field(0.5, ge=0, le=1)
    """The weight of the soft loss; the hard loss has 1 - alpha. 1: labels have no effect, unless `trust` is below 1;
    0: soft targets have none."""
    logit_mse: float = Field(0.0, ge=0)
    """The weight of the mean squared difference of the logits, which is added to the other terms."""
    trust: float = later_field(1.0, ge=0, le=1)
    """Where the teacher contradicts the gold, alpha and logit_mse are multiplied by it, and the hard loss has the
    weight that the soft loss loses. 1: all soft targets count alike; 0: labels alone correct the teacher's mistakes
    (with alpha 1, the conditional learning of Meng et al. 2019, arXiv:1904.12399). Rows without a label stay as they
    are."""

    def labels_only(self) -> "Distillation":
        """The same settings with weight 0 for all terms that compare a student with the teacher.

        A new term of that kind must be set to 0 here. A factor of such terms has its default: it has no effect, and
        equal trainings must have equal settings.
        """
        return self.model_copy(update={"alpha": 0.0, "logit_mse": 0.0, "trust": 1.0})

    @property
    def needs_teacher(self) -> bool:
        """Whether a term with a weight above 0 compares a student with the teacher."""
        return self.alpha > 0 or self.logit_mse > 0

    def loss(self, student_AxC: Tensor, targets: Targets, distribution: Distribution) -> Loss:
        """Compute the loss in float32, also under autocast; a term of weight 0 is not computed.

        Raises SpecError if a term needs the teacher's outputs and the targets have none.
        """
        if self.needs_teacher and targets.teacher_AxC is None:
            raise SpecError(
                f"distillation: alpha {self.alpha:g} and logit_mse {self.logit_mse:g} need the teacher's logits, "
                f"and these rows have none. Give rows with logits, or set both to 0."
            )
        # bf16 keeps eight bits of a number: too few for the differences of logits.
        with torch.autocast(student_AxC.device.type, enabled=False):
            terms_A = self._terms(student_AxC.float(), targets, distribution)
        total_A = torch.stack(list(terms_A.values())).sum(dim=0)
        return Loss(total_A, {name: term_A.detach().sum() for name, term_A in terms_A.items()})

    def _terms(self, student_AxC: Tensor, targets: Targets, distribution: Distribution) -> dict[str, Tensor]:
        """Name of a term -> its weighted value for each answer."""
        teacher_AxC = None if targets.teacher_AxC is None else targets.teacher_AxC.float()
        trust = self._trust(teacher_AxC, targets.gold, distribution)
        terms_A: dict[str, Tensor] = {}
        if teacher_AxC is not None and self.alpha > 0:
            terms_A["soft"] = self.alpha * distribution.soft_loss(student_AxC, teacher_AxC, self.temperature, trust)
        if self.alpha < 1:
            weight = (1 - self.alpha) * targets.gold_weight
            terms_A["hard"] = weight * distribution.hard_loss(student_AxC, targets.gold)
        if isinstance(trust, Tensor) and self.alpha > 0:
            # Without `gold_weight`: this weight comes from the soft term, which is a mean over all answers.
            moved_A = self.alpha * distribution.hard_loss(student_AxC, targets.gold, 1 - trust)
            terms_A["hard"] = terms_A["hard"] + moved_A if "hard" in terms_A else moved_A
        if teacher_AxC is not None and self.logit_mse > 0:
            terms_A["logit_mse"] = self.logit_mse * mean_squared_difference(student_AxC, teacher_AxC, trust)
        return terms_A

    def _trust(self, teacher_AxC: Tensor | None, gold: Tensor, distribution: Distribution) -> Weights:
        """The factor of the terms that compare with the teacher: `trust` where it contradicts the gold, otherwise 1."""
        if teacher_AxC is None or self.trust == 1:
            return 1.0
        return 1 - (1 - self.trust) * distribution.contradicts(teacher_AxC, gold).to(teacher_AxC.dtype)
