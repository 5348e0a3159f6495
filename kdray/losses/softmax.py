"""Softmax: each answer is one of C classes, and its outputs are the logits of their probabilities.

Shapes: A answers, C classes.
"""

from torch import Tensor
from torch.nn import functional

from kdray.losses.distribution import Unchanged, Weights

NO_GOLD = -1
"""The class of an answer that has no gold."""


class Softmax(Unchanged):
    """The terms of the loss for logits of classes. See `Distribution`."""

    settings = frozenset({"temperature", "alpha", "logit_mse", "trust"})

    def soft_loss(self, student_AxC: Tensor, teacher_AxC: Tensor, temperature: float, weights: Weights = 1.0) -> Tensor:
        """T² KL(teacher_T ‖ student_T), where x_T = softmax(x / T).

        The factor T² keeps the size of the gradient similar for all T (Hinton, Vinyals, Dean 2015, arXiv:1503.02531,
        section 2).
        """
        student_AxC = functional.log_softmax(student_AxC / temperature, dim=-1)
        teacher_AxC = functional.log_softmax(teacher_AxC / temperature, dim=-1)
        divergence_AxC = functional.kl_div(student_AxC, teacher_AxC, reduction="none", log_target=True)
        return temperature**2 * (divergence_AxC * weights).sum(dim=-1)

    def hard_loss(self, student_AxC: Tensor, gold: Tensor, weights: Weights = 1.0) -> Tensor:
        """Cross-entropy of the student's distribution with the gold classes (A, int64)."""
        loss_A = functional.cross_entropy(student_AxC, gold, reduction="none", ignore_index=NO_GOLD)
        return (loss_A[:, None] * weights)[:, 0]

    def contradicts(self, teacher_AxC: Tensor, gold: Tensor) -> Tensor:
        """Whether the teacher's most probable class is not the gold class (A x 1)."""
        return ((teacher_AxC.argmax(dim=-1) != gold) & (gold != NO_GOLD))[:, None]


SOFTMAX = Softmax()
