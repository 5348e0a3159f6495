"""DKD: the two parts of KL with weights of their own: the target class, and the shares of the other classes.

Shapes: A answers, C classes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kdray.losses.comparison import Comparison, Outcomes
from kdray.losses.divergences import KL
from kdray.losses.soft_term import SoftTerm


@dataclass(frozen=True)
class DKD(SoftTerm):
    """T² (a KL(target or not) + b KL(the other classes)), where a = `dkd_alpha` and b = `dkd_beta`: decoupled knowledge
    distillation (Zhao et al. 2022, arXiv:2203.08679).

    The first part compares the probability of the target class, and of all others together. The second one compares the
    shares of the others in what is left. With a = 1 and b = 1 - the teacher's probability of the target, it is KL.
    The target is the gold class; for an answer without gold, the teacher's most probable class.
    """

    name: ClassVar[str] = "dkd"
    fewest_outputs: ClassVar[int] = 3
    why_so_many: ClassVar[str] = (
        "of two classes one is the target and one is left, so its second part is always 0 and its first one is kl"
    )
    why_not_labels: ClassVar[str] = (
        "a label holds or does not hold: of these two outcomes one is the target and one is left, so the second part "
        "of dkd is always 0 and the first one is kl. Use kl for several labels."
    )
    dkd_alpha: float
    dkd_beta: float

    def of_classes(self, comparison: Comparison) -> Tensor:
        """See `SoftTerm`."""
        target_Ax1 = _targets(comparison)[:, None]
        (student_target, student_rest), (teacher_target, teacher_rest) = (
            _decouple(outcomes.logs, target_Ax1) for outcomes in comparison.classes()
        )
        of_target_A = KL().parts(student_target, teacher_target).sum(dim=-1)
        of_rest_A = KL().parts(student_rest, teacher_rest).sum(dim=-1)
        term_A = comparison.temperature**2 * (self.dkd_alpha * of_target_A + self.dkd_beta * of_rest_A)
        return (term_A[:, None] * comparison.weights)[:, 0]


def _targets(comparison: Comparison) -> Tensor:
    """The target class of each answer (A)."""
    likely_A = comparison.teacher_AxC.argmax(dim=-1)
    return likely_A if comparison.gold is None else torch.where(comparison.gold >= 0, comparison.gold, likely_A)


def _decouple(logs_AxC: Tensor, target_Ax1: Tensor) -> tuple[Outcomes, Outcomes]:
    """The target and all other classes together (A x 2), and the shares of the others among themselves (A x C).

    In the latter the target has the logarithm 0, so that it adds nothing to a divergence.
    """
    others_AxC = logs_AxC.scatter(1, target_Ax1, -torch.inf)
    rest_Ax1 = others_AxC.logsumexp(dim=-1, keepdim=True)
    target_Ax2 = torch.cat((logs_AxC.gather(1, target_Ax1), rest_Ax1), dim=-1)
    shares_AxC = (logs_AxC - rest_Ax1).scatter(1, target_Ax1, 0.0)
    return Outcomes(target_Ax2.exp(), target_Ax2), Outcomes(shares_AxC.exp(), shares_AxC)
