"""Losses that compare logits, as pure functions, one value an example. How they are weighed stands in `distillation`.

Shapes: B examples, C classes.
"""

from torch import Tensor
from torch.nn import functional


def soft_loss(student_logits_BxC: Tensor, teacher_logits_BxC: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher_T ‖ student_T), where x_T = softmax(x / T).

    T² keeps the size of the gradient while T changes (Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2).
    """
    student_BxC = functional.log_softmax(student_logits_BxC / temperature, dim=-1)
    teacher_BxC = functional.log_softmax(teacher_logits_BxC / temperature, dim=-1)
    divergence_BxC = functional.kl_div(student_BxC, teacher_BxC, reduction="none", log_target=True)
    return temperature**2 * divergence_BxC.sum(dim=-1)


def hard_loss(student_logits_BxC: Tensor, labels_B: Tensor) -> Tensor:
    """Cross-entropy with the labels."""
    return functional.cross_entropy(student_logits_BxC, labels_B, reduction="none")


def logit_mse(student_logits_BxC: Tensor, teacher_logits_BxC: Tensor) -> Tensor:
    """Mean over the classes of the squared difference (Ba and Caruana 2014, arXiv:1312.6184)."""
    return (student_logits_BxC - teacher_logits_BxC).square().mean(dim=-1)
