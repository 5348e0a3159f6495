"""The loss of outputs over a vocabulary, computed for some answers at a time, so that few logits exist at once.

The logits of a part are computed again in the backward pass: the last layer is computed once more, and the memory of a
step does not depend on the number of answers times the size of the vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdray.losses.distillation import Loss, Targets
from kdray.models.vocabulary_head import Answers


def loss_in_parts(answers: Answers, targets: Targets, loss_of: Callable[[Tensor, Targets], Loss]) -> Loss:
    """The loss of all answers together; `loss_of` computes that of the outputs of some answers."""
    parts = list(answers.parts())
    if len(parts) < 2:
        return loss_of(answers.outputs(), targets)
    losses = [_loss_of_part(answers, part, targets, loss_of) for part in parts]
    terms = {name: torch.stack([loss.terms[name] for loss in losses]).sum() for name in losses[0].terms}
    return Loss(torch.cat([loss.total_A for loss in losses]), terms)


def _loss_of_part(answers: Answers, part: slice, targets: Targets, loss_of: Callable[[Tensor, Targets], Loss]) -> Loss:
    names: list[str] = []

    def compute(states_PxH: Tensor) -> tuple[Tensor, ...]:
        loss = loss_of(Answers(states_PxH, answers.head).outputs(), targets.part(part))
        names[:] = loss.terms
        return (loss.total_A, *loss.terms.values())

    # The last layer has no dropout, so no random state has to be kept.
    total_A, *terms = checkpoint(compute, answers.states_AxH[part], use_reentrant=False, preserve_rng_state=False)
    return Loss(total_A, dict(zip(names, terms, strict=True)))
