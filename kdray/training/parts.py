"""The loss of outputs over a vocabulary, computed for some answers at a time, so that few logits exist at once.

The logits of a part are computed again in the backward pass: the last layer is computed once more, and the memory of a
step does not depend on the number of answers times the size of the vocabulary.

Shapes: A answers of a batch, P of a part, H numbers that the last layer reads.
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
    # One split, not a slice for each part: the gradient of each slice would be as large as all states.
    pieces = answers.states_AxH.split([part.stop - part.start for part in parts])
    losses = [
        _loss_of_part(Answers(states_PxH, answers.head), targets.part(part), loss_of)
        for states_PxH, part in zip(pieces, parts, strict=True)
    ]
    terms = {name: torch.stack([loss.terms[name] for loss in losses]).sum() for name in losses[0].terms}
    return Loss(torch.cat([loss.total_A for loss in losses]), terms)


def _loss_of_part(part: Answers, targets: Targets, loss_of: Callable[[Tensor, Targets], Loss]) -> Loss:
    names: list[str] = []

    def compute(states_PxH: Tensor) -> tuple[Tensor, ...]:
        loss = loss_of(Answers(states_PxH, part.head).outputs(), targets)
        names[:] = loss.terms
        return (loss.total_A, *loss.terms.values())

    # The last layer has no dropout, so no random state has to be kept.
    total_A, *terms = checkpoint(compute, part.states_AxH, use_reentrant=False, preserve_rng_state=False)
    return Loss(total_A, dict(zip(names, terms, strict=True)))
