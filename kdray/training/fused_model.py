"""The forward pass of several models of one architecture on the same batch, as one batch of models.

This module needs PyTorch alone, so that `bench/gpu.py` can measure it on machines without kdray's other packages.
Letters: N models, B rows, L tokens of the longest row, A answers, C outputs, V words, E numbers of a word.
"""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel


class Batch(Protocol):
    """What a model reads, and the places of its answers: `kdray.data.rows.Batch`."""

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Name of an input -> its values, B x L."""
        ...

    def answers(self, logits: Tensor) -> Tensor:
        """The outputs at the answers (A x C), of the logits of a model."""
        ...


class StackedModel:
    """Models of one architecture with stacked weights. They draw the same dropout, as each of them does alone."""

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """`weights`: the name of each weight -> those of all models, N x its shape. `gradients`: theirs.

        `model` has the architecture, and is not changed.
        """
        self.outline = _without_weights(model, weights).train()
        """The model that computes with the weights of all."""
        self._weights, self._gradients = dict(weights), gradients
        tables = {id(weight): name for name, weight in model.named_parameters()}
        for module, original in zip(self.outline.modules(), model.modules(), strict=True):
            # A subclass may do more with ids than to look up rows.
            if type(module) is not nn.Embedding or module.max_norm is not None or module.scale_grad_by_freq:
                continue
            if (name := tables[id(original.weight)]) in weights:
                module.forward = partial(_look_up, module, gradients[name])  # type: ignore[method-assign]

    def outputs(self, batch: Batch, autocast: torch.dtype | None) -> Tensor:
        """The outputs of all models at the answers of a batch (N x A x C), with gradients."""

        def outputs_of_one(weights: dict[str, Tensor]) -> Tensor:
            logits: Tensor = functional_call(self.outline, weights, (), batch.inputs).logits
            return batch.answers(logits)

        device = batch.inputs["input_ids"].device.type
        # Without the cache of autocast: the rounded weights of one step must not stay for the next one. With the plain
        # form of attention: the fused one for CPUs would be called for one model after the other, and those for GPUs
        # are untried with stacked weights, a mask that is not stacked, and dropout.
        with (
            torch.autocast(device, dtype=autocast, enabled=autocast is not None, cache_enabled=False),
            sdpa_kernel(SDPBackend.MATH),
        ):
            outputs_NxAxC: Tensor = torch.vmap(outputs_of_one, randomness="same")(self._weights)
        return outputs_NxAxC

    def add_gradients(self, loss: Tensor) -> None:
        """Add the gradients of a loss of the outputs to those of the weights."""
        # Not `backward`: it would warn about gradients whose layout is not that of the stacked weights.
        new = torch.autograd.grad(loss, list(self._weights.values()), allow_unused=True)
        for name, gradient in zip(self._weights, new, strict=True):
            if gradient is not None:  # of a table of words it has been added already
                self._gradients[name].add_(gradient)


def unused_weights(model: nn.Module, batch: Batch) -> frozenset[str]:
    """The names of the weights that the answers of a model for a batch do not depend on."""
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    total = _outputs_without_dropout(model, batch).sum()
    gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return frozenset(name for name, gradient in zip(named, gradients, strict=True) if gradient is None)


def problem_of(model: nn.Module, batch: Batch) -> str:
    """Why models like this one cannot be computed as one batch of models; empty: they can. It tries it on a batch."""
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return "it normalises over the batch, and remembers what it has read"
    weights = {name: weight.detach()[None].requires_grad_() for name, weight in model.named_parameters()}
    stacked = StackedModel(model, weights, {name: torch.zeros_like(weight) for name, weight in weights.items()})
    device = batch.inputs["input_ids"].device
    try:
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
            stacked.add_gradients(stacked.outputs(batch, None).sum())
        stacked.outline.eval()
        (outputs_AxC,) = stacked.outputs(batch, None)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return f"PyTorch cannot compute it so ({str(error).strip().splitlines()[0]})"
    is_same = torch.allclose(outputs_AxC, _outputs_without_dropout(model, batch), rtol=1e-3, atol=1e-4)
    return "" if is_same else "its outputs would be others"


def _outputs_without_dropout(model: nn.Module, batch: Batch) -> Tensor:
    was_training = model.training
    model.eval()
    outputs_AxC = batch.answers(model(**batch.inputs).logits)
    model.train(was_training)
    return outputs_AxC


def _without_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model that needs no memory for these weights, which it gets at each call."""
    # deepcopy takes what stands in `memo` in place of a copy.
    memo: dict[int, Any] = {id(model.get_parameter(name)): nn.Parameter(torch.empty(0)) for name in weights}
    # The hooks stay those of the model: a compact table numbers the tokens of all models alike.
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    owners = (getattr(hook, "__self__", None) for hook in hooks)
    memo |= {id(owner): owner for owner in owners if not isinstance(owner, nn.Module | None)}
    outline: nn.Module = copy.deepcopy(model, memo)
    return outline


def _look_up(table: nn.Embedding, gradients_NxVxE: Tensor, ids: Tensor) -> Tensor:
    """What the tables of all models give for these ids; called within `torch.vmap`."""
    rows: Tensor = _LookUp.apply(table.weight, gradients_NxVxE, ids, table.padding_idx)
    return rows


class _LookUp(torch.autograd.Function):
    """The rows of a table. `torch.vmap` calls `vmap` in place of the rest."""

    @staticmethod
    def forward(table_VxE: Tensor, gradients_NxVxE: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        return functional.embedding(ids, table_VxE)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("a look-up in one table")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        if in_dims[:3] != (0, None, None):
            raise NotImplementedError("a look-up of ids that depend on weights")
        return _StackedLookUp.apply(*inputs), 0


class _StackedLookUp(torch.autograd.Function):
    """The same rows of N tables. Their gradient is added to `gradients_NxVxE`, in those rows alone.

    PyTorch's own function would copy all tables before each look-up, and make a gradient of their size.
    """

    @staticmethod
    def forward(ctx: Any, table_NxVxE: Tensor, gradients_NxVxE: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        ctx.gradients_NxVxE, ctx.ids, ctx.padding = gradients_NxVxE, ids, padding
        # index_select would copy tables that do not lie behind each other.
        return table_NxVxE[:, ids]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ids_M = ctx.ids.flatten()
        new_NxMxE = gradients[0].reshape(len(gradients[0]), len(ids_M), -1)
        if ctx.padding is not None:
            # The row of padding is not trained.
            new_NxMxE = new_NxMxE * (ids_M != ctx.padding)[:, None]
        ctx.gradients_NxVxE.index_add_(1, ids_M, new_NxMxE)
        return None, None, None, None
