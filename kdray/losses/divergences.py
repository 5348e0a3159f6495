"""Divergences between the probabilities of teacher and student: `kl`, `reverse_kl`, `jsd`, `tvd`.

t are the teacher's probabilities at the temperature, s the student's.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kdray.losses.comparison import Outcomes
from kdray.losses.soft_term import Divergence


class KL(Divergence):
    """KL(t ‖ s) = Σ t log(t / s): the student gives probability to all that the teacher does (Hinton, Vinyals, Dean
    2015, arXiv:1503.02531)."""

    name = "kl"

    def parts(self, student: Outcomes, teacher: Outcomes) -> Tensor:
        """See `Divergence`."""
        return teacher.probabilities * (teacher.logs - student.logs)


class ReverseKL(Divergence):
    """KL(s ‖ t) = Σ s log(s / t): the student gives no probability to what the teacher excludes (Gu et al. 2023,
    arXiv:2306.08543)."""

    name = "reverse_kl"

    def parts(self, student: Outcomes, teacher: Outcomes) -> Tensor:
        """See `Divergence`."""
        return student.probabilities * (student.logs - teacher.logs)


@dataclass(frozen=True)
class JSD(Divergence):
    """b KL(t ‖ m) + (1 - b) KL(s ‖ m), where m = b t + (1 - b) s and b = `jsd_beta`: the generalised divergence of
    Jensen and Shannon (Agarwal et al. 2023, arXiv:2306.13649).

    Divided by b it becomes KL(t ‖ s) as b goes to 0; divided by 1 - b, KL(s ‖ t) as b goes to 1.
    """

    name: ClassVar[str] = "jsd"
    jsd_beta: float

    def parts(self, student: Outcomes, teacher: Outcomes) -> Tensor:
        """See `Divergence`."""
        beta = self.jsd_beta
        mixture = torch.logaddexp(teacher.logs + math.log(beta), student.logs + math.log1p(-beta))
        of_teacher = teacher.probabilities * (teacher.logs - mixture)
        return beta * of_teacher + (1 - beta) * student.probabilities * (student.logs - mixture)


class TVD(Divergence):
    """½ Σ |t - s|: the distance of total variation, which no single outcome dominates (Wen et al. 2023,
    arXiv:2307.15190).

    It is of the first order in the difference of the logits, so its factor is T, not T².
    """

    name = "tvd"
    power = 1

    def parts(self, student: Outcomes, teacher: Outcomes) -> Tensor:
        """See `Divergence`."""
        return (teacher.probabilities - student.probabilities).abs() / 2
