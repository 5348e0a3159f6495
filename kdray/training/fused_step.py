"""One optimiser step of several students of one architecture on the same batch, computed as one batch of models.

The weights of the students are stacked, and each operation of the forward and the backward pass is one operation for
all of them. A student gets the numbers that it gets alone, up to rounding: it has its own loss, learning rate, clipping
and moments of AdamW, and the dropout of the seed that all students of the stack have in common.

Letters: N students, P numbers of all weights of a student, A answers of a batch, C outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from kdray.data.rows import Rows
from kdray.losses.distillation import Targets
from kdray.losses.objective import Objective
from kdray.slots.job import Worker
from kdray.training.checkpoint import RunningSums
from kdray.training.fused_loss import FusedObjective
from kdray.training.fused_model import StackedModel
from kdray.training.precision import autocast_dtype
from kdray.training.settings import Training

ALIGNMENT = 64
"""Each weight begins at a multiple of so many numbers, because kernels read aligned memory faster."""


@dataclass(eq=False)
class Member:
    """One student of a stack. Its model and its optimizer have its numbers after `Stack.write_back`."""

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.AdamW
    training: Training

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Its weights, by name."""
        return dict(self.model.named_parameters())


@dataclass
class _New:
    """What a student has done since it was written back."""

    rows: int = 0
    answers: int = 0
    terms: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Place:
    """The place of a weight among the P numbers of a student."""

    name: str
    shape: torch.Size
    start: int
    group: int
    """The number of its group in the optimizer."""

    @property
    def stop(self) -> int:
        """The number behind its last one."""
        return self.start + self.shape.numel()

    def of(self, tensor: Tensor) -> Tensor:
        """The weight in a tensor of numbers: P, or N x P."""
        part: Tensor = tensor[..., self.start : self.stop]
        return part.view(*tensor.shape[:-1], *self.shape)


class Stack:
    """The weights and the moments of several students, which make their steps together.

    Its tensors are N x P: one row for each student, in which each weight has its place.
    """

    def __init__(self, members: Sequence[Member], worker: Worker, unused: frozenset[str] = frozenset()) -> None:
        """`unused` are the names of the weights that the model does not use: they stay as they are."""
        self.members, self._worker, device = tuple(members), worker, worker.device
        first = self.members[0]
        self._places, self._groups = _layout(first, unused)
        shape = len(members), self._groups[-1].stop
        self._weights, self._gradients, self._means, self._squares = (torch.zeros(shape, device=device) for _ in "wgms")
        # AdamW adds 1 to a count itself, so each of its calls has one.
        self._steps = [[torch.zeros((), device=device) for _ in self._groups] for _ in members]
        for number in range(len(members)):
            self._read(number)
        weights = {place.name: place.of(self._weights).detach().requires_grad_() for place in self._places}
        gradients = {place.name: place.of(self._gradients) for place in self._places}
        self._model = StackedModel(first.model, weights, gradients)
        settings = [member.objective.distillation for member in members]
        self._objective = FusedObjective(settings, first.objective.distribution, device)
        self._autocast = autocast_dtype(first.training.precision, device, first.model)
        self._limits_N = torch.tensor([member.training.clip_norm for member in members], device=device)
        self._new = [_New() for _ in members]
        self._norms_N = torch.zeros(len(members), device=device)
        self._terms: dict[str, Tensor] = {}

    def step(self, rows: Rows, indices: np.ndarray, rates: Sequence[float], progress: Sequence[float]) -> None:
        """Make one step on these rows. Each student has its own learning rate, and its own share of its training."""
        answers, with_gold = rows.count_answers(indices)
        self._gradients.zero_()
        size = self.members[0].training.microbatch or len(indices)
        for start in range(0, len(indices), size):
            batch = rows.batch(indices[start : start + size], self._worker.pad_multiple).to(self._worker.device)
            targets = Targets(
                gold=batch.gold, teacher_AxC=batch.teacher_logits_AxC, gold_weight=answers / max(1, with_gold)
            )
            loss = self._objective.loss(self._model.outputs(batch, self._autocast), targets, progress)
            self._model.add_gradients(loss.total / max(1, answers))
            for name, sums_N in loss.terms.items():
                self._terms[name] = self._terms[name] + sums_N if name in self._terms else sums_N
        for new, names in zip(self._new, self._objective.names, strict=True):
            new.rows += len(indices)
            new.answers += answers
            new.terms |= names
        self._clip()
        for number, rate in enumerate(rates):
            self._update(number, rate)

    def write_back(self, number: int, sums: RunningSums) -> None:
        """Write a student's weights and moments into its model and its optimizer, and add what is new to its sums."""
        member = self.members[number]
        for place in self._places:
            parameter = member.parameters[place.name]
            parameter.data.copy_(place.of(self._weights[number]))
            member.optimizer.state[parameter] = {
                "step": self._steps[number][place.group].clone(),
                "exp_avg": place.of(self._means[number]).clone(),
                "exp_avg_sq": place.of(self._squares[number]).clone(),
            }
        new, self._new[number] = self._new[number], _New()
        sums.rows += new.rows
        sums.answers += new.answers
        for name in new.terms:
            sums.terms[name] = sums.terms.get(name, 0.0) + self._terms[name][number]
            self._terms[name][number] = 0.0
        sums.norm = sums.norm + self._norms_N[number]
        self._norms_N[number] = 0.0

    def _read(self, number: int) -> None:
        """Take a student's weights and moments. Its optimizer has none before its first step."""
        member = self.members[number]
        for place in self._places:
            parameter = member.parameters[place.name]
            place.of(self._weights[number]).copy_(parameter.data)
            if state := member.optimizer.state.get(parameter):
                place.of(self._means[number]).copy_(state["exp_avg"])
                place.of(self._squares[number]).copy_(state["exp_avg_sq"])
                self._steps[number][place.group].copy_(state["step"])

    def _clip(self) -> None:
        """Scale the gradient of each student down to its largest norm, as `torch.nn.utils.clip_grad_norm_` does."""
        norms_N = torch.linalg.vector_norm(self._gradients, dim=1)
        self._gradients *= (self._limits_N / (norms_N + 1e-6)).clamp(max=1.0)[:, None]
        self._norms_N += norms_N

    def _update(self, number: int, rate: float) -> None:
        """Update the weights of a student as its own optimizer would."""
        tensors = self._weights, self._gradients, self._means, self._squares
        groups = self.members[number].optimizer.param_groups
        for settings, part, step in zip(groups, self._groups, self._steps[number], strict=True):
            weights, gradients, means, squares = ([tensor[number, part]] for tensor in tensors)
            adamw(
                weights,
                gradients,
                means,
                squares,
                max_exp_avg_sqs=[],
                state_steps=[step],
                fused=True,
                amsgrad=False,
                beta1=settings["betas"][0],
                beta2=settings["betas"][1],
                lr=rate,
                weight_decay=settings["weight_decay"],
                eps=settings["eps"],
                maximize=False,
            )


def _layout(member: Member, unused: frozenset[str]) -> tuple[list[_Place], list[slice]]:
    """The places of all weights, group after group of the optimizer, and the numbers of each group."""
    names = {parameter: name for name, parameter in member.parameters.items() if name not in unused}
    places: list[_Place] = []
    groups: list[slice] = []
    stop = 0
    for group, settings in enumerate(member.optimizer.param_groups):
        start = stop
        for parameter in filter(names.__contains__, settings["params"]):
            places.append(_Place(names[parameter], parameter.shape, stop, group))
            stop += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
        groups.append(slice(start, stop))
    return places, groups
