"""One optimiser step on a global batch, which the workers of a slot share.

`fit` decides which rows a batch has and how many steps there are. Letters: A answers of a batch, C outputs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdray.data.rows import Batch, Rows
from kdray.losses.distillation import Loss, Targets
from kdray.slots.job import Worker
from kdray.training.checkpoint import RunningSums
from kdray.training.precision import autocast_dtype, model_family
from kdray.training.settings import Training

LossOf = Callable[[Tensor, Targets], Loss]
"""A function of the model's outputs (A x C) and the targets of the answers that gives the loss of each answer."""

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


class Step:
    """The optimiser step of one model. Each worker computes its part of the global batch."""

    def __init__(self, model: nn.Module, training: Training, loss_of: LossOf, worker: Worker) -> None:
        self._training, self._loss_of, self._worker = training, loss_of, worker
        self._model = model
        if worker.world > 1:
            unused = model_family(model) in UNUSED_PARAMETERS
            self._model = DistributedDataParallel(model, find_unused_parameters=unused)
        # Found once: walking the modules at each step took 0.2 ms, longer than clipping a small model's gradients.
        self._parameters = list(model.parameters())
        self.optimizer = adamw(model, training)
        self._autocast = autocast_dtype(training.precision, worker.device, model)

    def __call__(self, rows: Rows, indices: np.ndarray, rate: float, progress: float, sums: RunningSums) -> None:
        """Make one step on these rows with this learning rate, and add its loss to `sums`.

        `progress` is the share of the training that is behind, from 0 at the first step to 1 at the last one.
        """
        answers, with_gold = rows.count_answers(indices)
        batch, weight = self._own_part(rows, indices, answers)
        with torch.autocast(self._worker.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            outputs = batch.answers(self._model(**batch.inputs).logits)
        targets = Targets(
            gold=batch.gold,
            teacher_AxC=batch.teacher_logits_AxC,
            gold_weight=answers / max(1, with_gold),
            progress=progress,
            sum_over_workers=lambda values: self._sum_over_workers(values, bool(weight)),
        )
        loss = self._loss_of(outputs, targets)
        (loss.total_A.sum() * weight).backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, self._training.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        counts = (len(batch.ids), len(loss.total_A)) if weight else (0, 0)
        sums.add(loss, *counts, norm.detach())

    def _sum_over_workers(self, values: Tensor, has_rows: bool) -> Tensor:
        """The sum of the tensors of all workers. A collective call, and another one in the backward pass."""
        if self._worker.world == 1:
            return values
        # A rank without a row computes the loss of another rank's row, which must not count twice.
        total: Tensor = _SumOverWorkers.apply(values if has_rows else 0 * values)
        return total

    def _own_part(self, rows: Rows, indices: np.ndarray, answers: int) -> tuple[Batch, float]:
        """This rank's rows of the global batch, and the weight of one answer in this rank's loss.

        DDP averages the gradients of the ranks. The weight `world / answers`, with the answers of the global batch,
        makes that average the gradient of the mean loss over all of them, whatever the sizes of the ranks' parts.
        """
        own = indices[self._worker.rank :: self._worker.world]
        weight = self._worker.world / answers if len(own) else 0.0
        # DDP needs a backward pass of every rank, so a rank without a row of a short batch computes one with weight 0.
        batch = rows.batch(own if len(own) else indices[:1], self._worker.pad_multiple)
        return batch.to(self._worker.device), weight


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
