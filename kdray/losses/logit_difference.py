"""MSE: the squared difference of the logits of student and teacher. Shapes: A answers, C outputs."""

from torch import Tensor

from kdray.losses.comparison import Comparison, Weights
from kdray.losses.soft_term import SoftTerm


def mean_squared_difference(student_AxC: Tensor, teacher_AxC: Tensor, weights: Weights = 1.0) -> Tensor:
    """The squared difference of the outputs, mean over the outputs (A) (Ba and Caruana 2014, arXiv:1312.6184)."""
    return ((student_AxC - teacher_AxC).square() * weights).mean(dim=-1)


class MSE(SoftTerm):
    """The squared difference of the logits, mean over the outputs (Kim et al. 2021, arXiv:2105.08919).

    The temperature has no effect on it. Unlike `distillation.logit_mse` it replaces the other soft terms, so its weight
    is alpha.
    """

    name = "mse"

    def of_classes(self, comparison: Comparison) -> Tensor:
        """See `SoftTerm`."""
        return mean_squared_difference(comparison.student_AxC, comparison.teacher_AxC, comparison.weights)

    def of_labels(self, comparison: Comparison) -> Tensor:
        """See `SoftTerm`."""
        return self.of_classes(comparison)
