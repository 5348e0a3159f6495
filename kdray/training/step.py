"""One optimiser step on a global batch, which the workers of a slot share.

`fit` decides which rows a batch has and how many steps there are. Letters: A answers of a batch, C outputs.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdray.data.rows import Batch, Rows
from kdray.losses.distillation import Loss, Targets
from kdray.losses.objective import Objective
from kdray.models.vocabulary_head import answer
from kdray.slots.job import Worker
from kdray.training.checkpoint import RunningSums
from kdray.training.inside import Inside, inner_weights
from kdray.training.parts import loss_in_parts
from kdray.training.precision import autocast_dtype, model_family
from kdray.training.settings import Training

UNUSED_PARAMETERS = ("big_bird", "canine", "esm", "luke", "xlnet")
"""Model families with parameters that their classification model never uses. DDP waits for the gradients of all
parameters, unless it searches for the unused ones at each step."""


class _SumOverWorkers(torch.autograd.Function):
    """The sum of a tensor over all workers, with the gradients of the losses of all workers.

    `torch.distributed.nn.functional.all_reduce` does the same, but PyTorch has deprecated it for a function of a
    private module.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Add up the values."""
        return _all_reduced(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Add up the gradients, because the sum is in the loss of every worker."""
        return _all_reduced(gradients[0])


def _all_reduced(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


class Learner(nn.Module):
    """The model with its objective: everything that an optimiser changes."""

    def __init__(self, model: nn.Module, objective: Objective, inside: Inside | None = None) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        self._inside = inside

    def forward(self, batch: Batch, targets: Targets, rows: np.ndarray, weights: tuple[float, float]) -> Loss:
        """The loss of a batch with these rows; `weights` are the `inner_weights` of the batch of all workers."""
        answers = answer(self.model, batch)
        inside, inner = self._inside, None
        if inside is not None and inside.answers_live:
            reads = self.objective.reads_teacher_outputs(targets.progress)
            targets = replace(targets, is_live=True, teacher_AxC=inside.teacher_outputs(batch) if reads else None)
        if inside is not None and self.objective.compares_layers(targets.progress):
            inner = inside.targets(batch, rows, weights)
        loss = loss_in_parts(answers, targets, self.objective.loss_of_outputs)
        return self.objective.with_inner_terms(loss, targets, inner)


class Step:
    """The optimiser step of one model. Each worker computes its part of the global batch."""

    def __init__(self, learner: Learner, training: Training, worker: Worker) -> None:
        self._training, self._worker = training, worker
        self._learner: nn.Module = learner
        if worker.world > 1:
            unused = may_have_unused_parameters(learner.model)
            self._learner = DistributedDataParallel(learner, find_unused_parameters=unused)
        # Found once: walking the modules at each step took 0.2 ms, longer than clipping a small model's gradients.
        self._parameters = list(learner.parameters())
        self.optimizer = adamw(learner, training)
        self._autocast = autocast_dtype(training.precision, worker.device, learner.model)

    def __call__(self, rows: Rows, indices: np.ndarray, rate: float, progress: float, sums: RunningSums) -> None:
        """Make one step on these rows with this learning rate, and add its loss to `sums`.

        `progress` is the share of the training that is behind, from 0 at the first step to 1 at the last one.
        """
        answers, with_gold = rows.count_answers(indices)
        own, weight = self._own_part(indices, answers)
        pieces, inner = self._pieces(own), inner_weights(rows, indices, answers)
        for number, piece in enumerate(pieces):
            batch = rows.batch(piece, self._worker.pad_multiple).to(self._worker.device)
            targets = Targets(
                gold=batch.gold,
                teacher_AxC=batch.teacher_logits_AxC,
                gold_weight=answers / max(1, with_gold),
                progress=progress,
                sum_over_workers=lambda values: self._sum_over_workers(values, bool(weight)),
            )
            # The workers add up their gradients once a step, in the backward pass of the last piece.
            with self._without_sum() if number < len(pieces) - 1 else nullcontext():
                with torch.autocast(self._worker.device.type, dtype=self._autocast, enabled=self._autocast is not None):
                    loss: Loss = self._learner(batch, targets, piece, inner)
                (loss.total * weight).backward()
            sums.add_loss(loss, *((len(piece), len(loss.total_A)) if weight else (0, 0)))
        norm = nn.utils.clip_grad_norm_(self._parameters, self._training.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        sums.add_norm(norm.detach())

    def _sum_over_workers(self, values: Tensor, has_rows: bool) -> Tensor:
        """The sum of the tensors of all workers. A collective call, and another one in the backward pass."""
        if self._worker.world == 1:
            return values
        # A rank without a row computes the loss of another rank's row, which must not count twice.
        total: Tensor = _SumOverWorkers.apply(values if has_rows else 0 * values)
        return total

    def _pieces(self, own: np.ndarray) -> list[np.ndarray]:
        """This rank's rows of a step, as many at a time as are computed together."""
        size = self._training.microbatch or len(own)
        return [own[start : start + size] for start in range(0, len(own), size)]

    def _without_sum(self) -> AbstractContextManager[None]:
        """A block in which the workers do not add up their gradients."""
        learner = self._learner
        return learner.no_sync() if isinstance(learner, DistributedDataParallel) else nullcontext()

    def _own_part(self, indices: np.ndarray, answers: int) -> tuple[np.ndarray, float]:
        """This rank's rows of the global batch, and the weight of one answer in this rank's loss.

        DDP averages the gradients of the ranks. The weight `world / answers`, with the answers of the global batch,
        makes that average the gradient of the mean loss over all of them, whatever the sizes of the ranks' parts.
        """
        own = indices[self._worker.rank :: self._worker.world]
        # DDP needs a backward pass of every rank, so a rank without a row of a short batch computes one with weight 0.
        return (own, self._worker.world / max(1, answers)) if len(own) else (indices[:1], 0.0)


def may_have_unused_parameters(model: nn.Module) -> bool:
    """Whether a training step may leave parameters of this model without a gradient."""
    if model_family(model) in UNUSED_PARAMETERS:
        return True
    # With a last layer of its own, BERT and its relatives keep a second bias, which only a tied layer uses.
    find = getattr(model, "get_output_embeddings", None)
    is_tied = getattr(getattr(model, "config", None), "tie_word_embeddings", True)
    return find is not None and find() is not None and not is_tied


def adamw(model: nn.Module, training: Training) -> torch.optim.AdamW:
    """A fused AdamW optimizer without weight decay for biases and normalisation weights.

    These are the parameters of one dimension.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)
