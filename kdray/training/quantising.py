"""Training with int8 in mind: the student computes as its int8 file will, while its weights stay in float32.

`forms.int8` writes that file with onnxruntime's dynamic quantisation. This module computes the same in PyTorch:

- matrix products and LSTMs with stored weights: seven-bit weights with one scale for each output, and activations in
  eight bits with one scale and zero point for the whole tensor, found anew at each call;
- embedding tables: eight bits with one scale and zero point for the whole table;
- all else, such as attention scores, convolutions, normalisation and a GRU: float32.

A weight or activation is divided by its scale and rounded, and the gradient passes the rounding as if it were not there
(the straight-through estimator of Bengio et al. 2013, arXiv:1308.3432, in the training of Jacob et al. 2018,
arXiv:1712.05877). Nothing is added to the model: its modules, parameters and files are those of any other student.

Activations have one scale for all rows of a batch with their padding, so an answer depends a little on the other rows,
as it does in the file. An LSTM of the file finds a scale for the states at each token, of the rows that have not ended,
so here it is a loop over the tokens.

Letters: B rows, L tokens, E inputs, H outputs or width, V rows of a table.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from kdray.data.rows import Rows
from kdray.forms.forms import FORM_OF
from kdray.forms.graphs import EXAMPLE
from kdray.forms.metrics import metric_name
from kdray.forms.synthetic import synthetic_inputs
from kdray.networks.encoder_model import token_mask
from kdray.tasks.task import Outputs, Task
from kdray.training.settings import Training

WEIGHT_STEPS = 64
"""Weights are whole numbers from -64 to 64: seven bits (`reduce_range`)."""
ACTIVATION_STEPS = 255
"""Activations and embedding tables are whole numbers from 0 to 255."""
EVALUATION_ROWS = 32
"""The most rows in one forward pass of an evaluation in int8: as many as when `kdray export` compares the file. That is
done on a CPU, where batches of rows of more than 64 tokens are smaller (`outputs.TOKENS_ON_CPU`)."""
FOLDED_VALUES = 8192
"""The exporter transposes the weight of a linear layer when it writes the graph, so that the quantiser finds the weight
stored. If a graph multiplies by one weight twice, it does so only up to this size, and larger weights stay in float32.
These are the layers of an ALBERT, which are used several times, and what DeBERTa shares between words and positions."""

Handler: TypeAlias = Callable[..., Any]
"""A function of (a function of torch, its arguments) that computes what the function computes, in int8."""


class Quantising:
    """Switches the forward pass of one student between float32 and int8."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Find out which weights are quantised: the model computes one small example for it."""
        self._model = model
        left = {id(weight) for weight in _unfolded_weights(model)}
        self._weights = {id(weight): weight for weight in model.parameters() if id(weight) not in left}
        self.is_on = False
        """Whether the last step of the training computed in int8."""

    @classmethod
    def of(cls, model: PreTrainedModel, training: Training) -> Self | None:
        """What switches this student in this training; None: it always computes in float32."""
        return None if training.quantised == "no" else cls(model)

    @contextmanager
    def step(self, is_on: bool) -> Iterator[None]:
        """Compute in int8 within the block if `is_on`."""
        self.is_on = is_on
        if not is_on:
            yield
            return
        with self.forward():
            yield

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Compute in int8 within the block. Other models, and what a loss learns, are left as they are."""
        mode = _Int8Mode(self._weights)
        hook = self._model.register_forward_pre_hook(mode.find_tokens, with_kwargs=True)
        try:
            with mode:
                yield
        finally:
            hook.remove()


def int8_quality(task: Task, int8: Outputs, student: Outputs, rows: Rows) -> dict[str, float]:
    """The quality of the outputs in int8, such as int8_accuracy, and how far its answers are those in float32."""
    quality, form = task.quality.name, FORM_OF["int8"]
    return {
        metric_name(form, quality): task.values(int8, rows)[quality],
        metric_name(form, "agreement"): task.agreement(int8, student),
    }


class _Int8Mode(TorchFunctionMode):
    """Replaces each function of torch that reads a quantised weight. The backward pass may come after the block."""

    def __init__(self, weights: Mapping[int, nn.Parameter]) -> None:
        super().__init__()
        # By identity: tensors are compared by their values.
        self._weights = weights
        self._tokens_BxL: Tensor | None = None

    def find_tokens(self, _model: nn.Module, _inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Find out where the tokens of the texts are, and where padding is; called before each forward pass."""
        mask_BxL = named.get("attention_mask")
        self._tokens_BxL = None if mask_BxL is None else token_mask(mask_BxL, mask_BxL)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler, position = _HANDLERS.get(func, (None, 0))
        if handler is None or position >= len(args) or not self._are_quantised(args[position]):
            return func(*args, **(kwargs or {}))
        if handler is _lstm:
            return _lstm(func, *args, tokens_BxL=self._tokens_BxL)
        return handler(func, *args, **(kwargs or {}))

    def _are_quantised(self, weights: Any) -> bool:
        tensors = weights if isinstance(weights, list | tuple) else (weights,)
        return all(id(tensor) in self._weights for tensor in tensors)


class _Rounded(torch.autograd.Function):
    """round(x / scale) + zero point, within limits, minus the zero point: whole numbers in float32.

    Backward as x / scale.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, zero_point: Tensor | float, limits: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(scale)
        # torch rounds a half to the even number, as onnxruntime and numpy do.
        return (values / scale).round_().add_(zero_point).clamp_(*limits).sub_(zero_point)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (scale,) = ctx.saved_tensors
        return gradients[0] / scale, None, None, None


def _rounded(values: Tensor, scale: Tensor, zero_point: Tensor | float, limits: tuple[int, int]) -> Tensor:
    rounded: Tensor = _Rounded.apply(values, scale, zero_point, limits)
    return rounded


def quantised_weight(weight_HxE: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -64 to 64 (H x E), and a scale for each output (H x 1); 0 is always 0."""
    largest = weight_HxE.detach().abs().amax(dim=1, keepdim=True)
    scale = largest / WEIGHT_STEPS
    scale = torch.where(scale < torch.finfo(scale.dtype).tiny, torch.ones_like(scale), scale)
    return _rounded(weight_HxE, scale, 0.0, (-WEIGHT_STEPS, WEIGHT_STEPS)), scale


def quantised_activation(values: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers (the zero point subtracted) and their one scale, as ONNX's DynamicQuantizeLinear computes them."""
    values = values.float()
    low, high = _range(values)
    scale = (high - low) / ACTIVATION_STEPS
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = (-low / scale).clamp(0, ACTIVATION_STEPS).round()
    return _rounded(values, scale, zero_point, (0, ACTIVATION_STEPS)), scale


def _range(values: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest value, and 0 between them."""
    low, high = torch.aminmax(values.detach())
    return low.clamp(max=0), high.clamp(min=0)


def _whole_numbers(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The whole numbers that a product reads, and their scale."""
    # Rows of a table that nothing has changed since are rounded already, and the file reads them as they are.
    known: tuple[Tensor, Tensor] | None = getattr(inputs, _OF_TABLE, None)
    return quantised_activation(inputs) if known is None else known


def _linear(func: Any, inputs: Tensor, weight_HxE: Tensor, bias_H: Tensor | None = None) -> Tensor:
    return _product(func, _whole_numbers(inputs), weight_HxE, bias_H)


def _product(func: Any, inputs: tuple[Tensor, Tensor], weight_HxE: Tensor, bias_H: Tensor | None) -> Tensor:
    whole, scale = inputs
    weight, scale_Hx1 = quantised_weight(weight_HxE)
    # Whole numbers up to 256 are exact in bf16, so autocast changes the accuracy of the sums only.
    return _scaled(func(whole, weight), scale * scale_Hx1[:, 0], bias_H)


def _addmm(func: Any, bias_H: Tensor, inputs: Tensor, weight_ExH: Tensor, **factors: Any) -> Tensor:
    # What GPT-2 calls a convolution, without the factors that no model uses.
    if factors:
        unchanged: Tensor = func(bias_H, inputs, weight_ExH, **factors)
        return unchanged
    return _linear(functional.linear, inputs, weight_ExH.t(), bias_H)


def _scaled(sums: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """The result of a product of whole numbers, in the type that it has without quantisation."""
    values = sums * scale
    return (values if bias is None else values + bias).to(sums.dtype)


def _embedding(func: Any, ids: Tensor, table_VxE: Tensor, *options: Any, **named: Any) -> Tensor:
    low, high = (end.double() for end in _range(table_VxE))
    exact_scale = (high - low) / ACTIVATION_STEPS
    is_flat = exact_scale < torch.finfo(torch.float32).tiny
    # numpy quantises tables: it rounds the scale to float32 after it has computed the zero point.
    zero_point = torch.where(is_flat, 0.0, -low / exact_scale).round().float()
    scale = torch.where(is_flat, 1.0, exact_scale).float()
    # Only the rows that are read are rounded, with the range of the whole table.
    whole = _rounded(func(ids, table_VxE, *options, **named), scale, zero_point, (0, ACTIVATION_STEPS))
    rows = whole * scale
    setattr(rows, _OF_TABLE, (whole, scale))
    return rows


def _lstm(
    func: Any, inputs_BxLxE: Tensor, start: Any, weights: Any, *options: Any, tokens_BxL: Tensor | None = None
) -> Any:
    """The states of one layer in one direction; its other forms have no int8, because the exporter has none of them.

    States of padding are 0, as in the file.
    """
    has_biases, layers, _, _, bidirectional, batch_first = options
    if len(weights) != 4 or not has_biases or layers != 1 or bidirectional or not batch_first:
        return func(inputs_BxLxE, start, weights, *options)
    from_inputs, from_states, bias, state_bias = weights
    # An LSTM of the file rounds its inputs itself, those from a table too.
    inputs = quantised_activation(inputs_BxLxE)
    gates_BxLx4H = _product(functional.linear, inputs, from_inputs, bias).float() + state_bias
    weight, scale_4Hx1 = quantised_weight(from_states)
    state_BxH, cell_BxH = (first[0].float() for first in start)
    if tokens_BxL is None:
        tokens_BxL = torch.ones(inputs_BxLxE.shape[:2], dtype=torch.bool, device=inputs_BxLxE.device)
    states = []
    for gates_Bx4H, is_token_B in zip(gates_BxLx4H.unbind(dim=1), tokens_BxL.unbind(dim=1), strict=True):
        whole, scale = quantised_activation(state_BxH)
        sums_Bx4H = functional.linear(whole, weight).float() * (scale * scale_4Hx1[:, 0])
        into, forget, candidate, out = (gates_Bx4H + sums_Bx4H).chunk(4, dim=1)
        cell_BxH = forget.sigmoid() * cell_BxH + into.sigmoid() * candidate.tanh()
        state_BxH = out.sigmoid() * cell_BxH.tanh() * is_token_B[:, None]
        states.append(state_BxH)
    return torch.stack(states, dim=1), state_BxH[None], cell_BxH[None]


_OF_TABLE = "_whole_numbers_of_table"
"""The attribute of a tensor with rows of a table: their whole numbers and scale."""

_HANDLERS: dict[Any, tuple[Handler, int]] = {
    functional.linear: (_linear, 1),
    torch.addmm: (_addmm, 2),
    functional.embedding: (_embedding, 1),
    torch.lstm: (_lstm, 2),
}
"""A function of torch -> what computes it in int8, and the position of its weights."""


class _CountedProducts(TorchFunctionMode):
    """Counts how often a forward pass multiplies tokens by each weight, as a graph does it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # With one vector a row, the graph has another operator (Gemm), whose weight the quantiser transposes itself.
        if func == functional.linear and args[0].ndim > 2:
            self.counts[id(args[1])] += 1
        return func(*args, **(kwargs or {}))


def _unfolded_weights(model: PreTrainedModel) -> list[nn.Parameter]:
    """The weights that are too large for the exporter to transpose, because several products share them."""
    counted, was_training = _CountedProducts(), model.training
    model.eval()
    with torch.no_grad(), counted:
        model(**synthetic_inputs(model, *EXAMPLE, model.device))
    model.train(was_training)
    return [w for w in model.parameters() if counted.counts[id(w)] > 1 and w.numel() > FOLDED_VALUES]
