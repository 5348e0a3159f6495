"""One step of the optimiser on a global batch, which the workers of a slot share.

Which rows a batch has and how often a step is made is the business of `fit`.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdray.data.rows import Batch, Rows
from kdray.losses.distillation import Loss
from kdray.slots.job import Worker
from kdray.training.checkpoint import RunningSums
from kdray.training.precision import autocast_dtype, model_family
from kdray.training.settings import Training

LossOf = Callable[[Tensor, Batch], Loss]
"""From the model's logits (B x C) and the batch to the loss of each example."""

UNUSED_PARAMETERS = ("big_bird", "canine", "esm", "luke", "xlnet")
"""Families that have parameters which their own classification never reads, and DDP would wait for gradients of."""


class Step:
    """One step of the optimiser on a global batch, of which each worker does its part."""

    def __init__(self, model: nn.Module, training: Training, loss_of: LossOf, worker: Worker) -> None:
        self.model, self.training, self.loss_of, self.worker = model, training, loss_of, worker
        unused = model_family(model) in UNUSED_PARAMETERS
        self.wrapped = DistributedDataParallel(model, find_unused_parameters=unused) if worker.world > 1 else model
        self.parameters = list(model.parameters())  # to find them takes longer than to clip a small model's gradients
        self.optimizer = adamw(model, training)
        self.dtype = autocast_dtype(training.precision, worker.device, model)

    def __call__(self, rows: Rows, indices: np.ndarray, rate: float, sums: RunningSums) -> None:
        """Lower the loss on these rows; add what came of it to `sums`."""
        batch, weight = self._own_part(rows, indices)
        with torch.autocast(self.worker.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            logits = self.wrapped(**batch.inputs).logits
        loss = self.loss_of(logits, batch)
        (loss.total_B.sum() * weight).backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.training.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        sums.add(loss, len(batch.labels_B) if weight else 0, norm.detach())

    def _own_part(self, rows: Rows, indices: np.ndarray) -> tuple[Batch, float]:
        """This rank's rows of a global batch, and the weight of one row in the loss that DDP averages over ranks.

        A rank that gets no row of a short batch still takes part in the step, with weight 0.
        """
        own = indices[self.worker.rank :: self.worker.world]
        weight = self.worker.world / len(indices) if len(own) else 0.0
        batch = rows.batch(own if len(own) else indices[:1], self.worker.pad_multiple)
        return batch.to(self.worker.device), weight


def adamw(model: nn.Module, training: Training) -> torch.optim.AdamW:
    """Fused AdamW; biases and normalisation weights, the parameters of one dimension, do not decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)
