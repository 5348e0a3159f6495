"""Losses that compare logits, as pure functions with one value for each example; `distillation` has their weights.

Shapes: B examples, C classes.
"""

from torch import Tensor
from torch.nn import functional


def soft_loss(student_logits_BxC: Tensor, teacher_logits_BxC: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher_T ‖ student_T), where x_T = softmax(x / T).

    The factor T² keeps the size of the gradient similar for all T (Hinton, Vinyals, Dean 2015, arXiv:1503.02531,
    section 2).
    """
    student_BxC = functional.log_softmax(student_logits_BxC / temperature, dim=-1)
    teacher_BxC = functional.log_softmax(teacher_logits_BxC / temperature, dim=-1)
    divergence_BxC = functional.kl_div(student_BxC, teacher_BxC, reduction="none", log_target=True)
    return temperature**2 * divergence_BxC.sum(dim=-1)


def hard_loss(student_logits_BxC: Tensor, labels_B: Tensor) -> Tensor:
    """Cross-entropy of the student's distribution with the labels."""
    return functional.cross_entropy(student_logits_BxC, labels_B, reduction="none")


def logit_mse(student_logits_BxC: Tensor, teacher_logits_BxC: Tensor) -> Tensor:
    """The squared difference of the logits, mean over the classes (Ba and Caruana 2014, arXiv:1312.6184)."""
    return (student_logits_BxC - teacher_logits_BxC).square().mean(dim=-1)
