"""DIST: whether the probabilities of student and teacher are correlated, within each answer and within each class.

Shapes: A answers, C outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kdray.losses.comparison import Comparison, own_sum
from kdray.losses.soft_term import SoftTerm

EPSILON = 1e-8
"""What is added to each sum of products, so that probabilities which do not vary have a correlation: 1 with others
that do not vary."""


@dataclass(frozen=True)
class DIST(SoftTerm):
    """b (1 - correlation within the answer) + g (1 - correlation within the class, mean over the classes), where b is
    `dist_beta` and g is `dist_gamma` (Huang et al. 2022, arXiv:2205.10536).

    Both are Pearson's correlations of the probabilities s and t, over the C outputs of an answer and over the answers
    of a batch. The student need not have the teacher's probabilities, only their order and relative distances.
    A correlation does not change with the scale, so its gradient has a similar size at all temperatures without a
    factor T². (The authors' code has that factor, and T = 1 unless it is set.)

    The second correlation is one of all answers in the batch, so what an answer adds depends on the others, as in the
    paper. They are those of the batch of all workers, because the sums are added up over the workers: how a batch is
    divided among them changes nothing. With weights, both are weighted correlations.
    """

    name: ClassVar[str] = "dist"
    fewest_outputs: ClassVar[int] = 3
    why_so_many: ClassVar[str] = (
        "the correlation of two probabilities with two others is 1 or -1, so it only says which one is larger"
    )
    whole_batch: ClassVar[str] = "dist_gamma"
    dist_beta: float
    dist_gamma: float

    def of_classes(self, comparison: Comparison) -> Tensor:
        """See `SoftTerm`."""
        student, teacher = comparison.classes()
        return self._of_probabilities(student.probabilities, teacher.probabilities, comparison)

    def of_labels(self, comparison: Comparison) -> Tensor:
        """See `SoftTerm`. The probabilities are those that the labels hold."""
        student, teacher = comparison.labels()
        return self._of_probabilities(student.probabilities[..., 0], teacher.probabilities[..., 0], comparison)

    def _of_probabilities(self, student_AxC: Tensor, teacher_AxC: Tensor, comparison: Comparison) -> Tensor:
        weights_AxC = torch.ones_like(teacher_AxC) * comparison.weights
        probabilities = student_AxC, teacher_AxC, weights_AxC
        within_answers_Ax1 = 1 - _correlation(*probabilities, dim=1)
        term_AxC = self.dist_beta * within_answers_Ax1
        # A collective call: it depends on the settings alone, which are the same on every worker.
        if self.dist_gamma:
            within_classes_1xC = 1 - _correlation(*probabilities, dim=0, total=comparison.sum_over_workers)
            term_AxC = term_AxC + self.dist_gamma * within_classes_1xC
        return (term_AxC * weights_AxC).mean(dim=-1)


def _correlation(
    student_AxC: Tensor, teacher_AxC: Tensor, weights_AxC: Tensor, dim: int, total: Callable[[Tensor], Tensor] = own_sum
) -> Tensor:
    """Pearson's correlation of student and teacher along one dimension, which has the length 1 in the result.

    `total` adds up what the workers have of that dimension.
    """
    # Centred before the products are added up: a difference of sums of squares would lose the digits of a small spread.
    # The derivatives with respect to the means are 0, because the weighted deviations add up to 0.
    with torch.no_grad():
        sums = total(
            torch.stack((weights_AxC, weights_AxC * student_AxC, weights_AxC * teacher_AxC)).sum(dim + 1, keepdim=True)
        )
        means = sums[1:] / sums[0].clamp(min=EPSILON)
    student_AxC, teacher_AxC = student_AxC - means[0], teacher_AxC - means[1]
    products = torch.stack((student_AxC * teacher_AxC, student_AxC.square(), teacher_AxC.square()))
    both, of_student, of_teacher = total((weights_AxC * products).sum(dim + 1, keepdim=True)) + EPSILON
    return both / (of_student.sqrt() * of_teacher.sqrt())
