"""Sigmoid: each of C labels holds or does not hold, and its output is the logit of the probability that it holds.

Shapes: A answers, C labels.
"""

from torch import Tensor
from torch.nn import functional

from kdray.losses.distribution import Unchanged


class Sigmoid(Unchanged):
    """The terms of the loss for logits of independent labels. See `Distribution`.

    All terms are means over the labels, as in transformers' `BCEWithLogitsLoss` for several labels: the same learning
    rates then fit 3 labels and 300.
    """

    settings = frozenset({"temperature", "alpha", "logit_mse"})

    def soft_loss(self, student_AxC: Tensor, teacher_AxC: Tensor, temperature: float) -> Tensor:
        """T² times the divergence KL(teacher_T ‖ student_T) of a label's two outcomes, where x_T = sigmoid(x / T).

        The factor T² keeps the size of the gradient similar for all T, as for the softmax (Hinton, Vinyals, Dean 2015,
        arXiv:1503.02531, section 2).
        """
        student_AxC, teacher_AxC = student_AxC / temperature, teacher_AxC / temperature
        # sigmoid(-x) = 1 - sigmoid(x): without this form, the logarithm of a probability near 1 would lose its digits.
        yes_AxC = teacher_AxC.sigmoid() * (functional.logsigmoid(teacher_AxC) - functional.logsigmoid(student_AxC))
        no_AxC = (-teacher_AxC).sigmoid() * (functional.logsigmoid(-teacher_AxC) - functional.logsigmoid(-student_AxC))
        return temperature**2 * (yes_AxC + no_AxC).mean(dim=-1)

    def hard_loss(self, student_AxC: Tensor, gold: Tensor) -> Tensor:
        """Binary cross-entropy with the gold labels (A x C: 1, 0; -1 in a row without gold)."""
        has_gold_A = gold[:, 0] >= 0
        loss_AxC = functional.binary_cross_entropy_with_logits(
            student_AxC, gold.clamp(min=0).to(student_AxC.dtype), reduction="none"
        )
        return loss_AxC.mean(dim=-1) * has_gold_A


SIGMOID = Sigmoid()
