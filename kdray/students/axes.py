"""Finds the axes of a model's weights that follow its widths, for any family, without a table of families.

The configuration is made small, and a model of it is outlined twice: with the small width, and with a larger one. The
axes whose size differs follow that width. Where the hidden size must be the number of heads times their size, both
change together; inside of a layer, the last weight of hidden size x hidden size is then the projection of the heads'
results, and the earlier ones compute queries, keys and values.

What was found is checked with numbers: a small random model whose heads and units are in another order must answer as
before. A family that does not is refused. The same check shows that units can be cut: no weight is left out.
"""

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from kdray.errors import TeacherError
from kdray.models.checks import errors_of_transformers
from kdray.students.layers import layers_of
from kdray.students.widths import FOLLOWS_HIDDEN, Width, Widths, cannot_cut

SMALL = Widths(heads=4, feed_forward=24, hidden=32, head_size=8, is_tied=True, shares_keys=False)
"""The widths of the model that the axes are found with. No rotation of positions needs a larger head."""
SMALL_VOCABULARY = 64
TOKENS = 12
"""The length of the text that the small model reads."""
MAX_DIFFERENCE = 1e-6
"""The largest difference of two logits that rounding explains, as a share of the largest logit."""


@dataclass(frozen=True)
class Axis:
    """What an axis counts: the units of a width."""

    width: Width
    groups: int
    """How often all units follow each other: 3 times where one weight computes queries, keys and values."""

    def take(self, tensor: Tensor, number: int, units: Tensor, count: int) -> Tensor:
        """The part of a tensor that belongs to these units, in their order.

        `number` is the number of this axis, `count` the number of units that the tensor has. A unit may have several
        entries, as a head has.
        """
        parts = tensor.unflatten(number, (self.groups, count, -1))
        return parts.index_select(number + 1, units.to(tensor.device)).flatten(number, number + 2)


Axes: TypeAlias = Mapping[str, tuple[Axis | None, ...]]
"""Name of a weight -> what each of its axes counts; None: no width."""


@dataclass(frozen=True)
class Structure:
    """How the weights of a model follow its widths."""

    axes: Axes
    stacks: tuple[str, ...]
    """The names of the module lists with the layers."""

    def layer(self, name: str) -> int | None:
        """The number of the layer that a weight or a module is in; None: it is in no layer."""
        for stack in self.stacks:
            if name.startswith(f"{stack}."):
                return int(name[len(stack) + 1 :].partition(".")[0])
        return None

    @property
    def layers(self) -> int:
        """The number of layers with weights of their own."""
        return 1 + max(layer for name in self.axes if (layer := self.layer(name)) is not None)

    @property
    def heads_are_shared(self) -> bool:
        """Whether a weight outside of the layers has an entry for each head, so that all layers need equal heads."""
        return any(
            self.layer(name) is None and axis is not None and axis.width == "heads"
            for name, axes in self.axes.items()
            for axis in axes
        )


Units: TypeAlias = Mapping[Width, Tensor]
"""Width -> numbers of units, in the order in which they are taken: layers x units, only units for the hidden size."""


def take_units(weights: Mapping[str, Tensor], structure: Structure, units: Units, source: Widths) -> dict[str, Tensor]:
    """The weights with only these units, in their order. `source` are the widths of the weights."""
    taken: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        layer = structure.layer(name)
        for number, axis in enumerate(structure.axes.get(name, ())):
            if axis is not None and axis.width in units:
                chosen = units[axis.width]
                # All layers have the same heads where a weight outside of them counts heads.
                rows = chosen if axis.width == "hidden" else chosen[layer or 0]
                tensor = axis.take(tensor, number, rows, source.count(axis.width))
        taken[name] = tensor.contiguous()
    return taken


@dataclass(frozen=True)
class View:
    """Where a model shows what its units compute: in what a module reads, or in what it gives."""

    module: nn.Module
    axis: Axis
    """The last axis of what the module reads or gives."""
    layer: int
    """The number of the layer that the module is in; 0 outside of the layers."""
    is_input: bool


def views_of(model: PreTrainedModel, structure: Structure) -> Iterator[View]:
    """Heads and feed-forward units are seen by the projections behind them, hidden units behind each norm."""
    modules = dict(model.named_modules())
    for name, axes in structure.axes.items():
        module, layer = modules[name.rpartition(".")[0]], structure.layer(name) or 0
        if len(axes) == 2 and isinstance(module, nn.Linear | Conv1D):
            axis = axes[input_number(module)]
            if axis is not None and axis.width != "hidden":
                yield View(module, axis, layer, is_input=True)
        if len(axes) == 1 and name.endswith(".weight") and axes[0] is not None and axes[0].width == "hidden":
            yield View(module, axes[0], layer, is_input=False)


def input_number(module: nn.Module) -> int:
    """The number of the axis of a module's weight that belongs to what the module reads."""
    return 0 if isinstance(module, Conv1D) else 1  # the layers of GPT-2, whose weights are input x output


def structure_of(family: type[PreTrainedModel], config: Any, widths: Iterable[Width]) -> Structure:
    """The axes that change if a model of this configuration gets other numbers of units of these widths.

    Where the hidden size is tied to the heads, either has the axes of both. Raises TeacherError for a family whose
    widths cannot be cut.
    """
    widths = tuple(widths)
    with _errors(config.model_type, widths[0]):
        small = _small_config(config)
    text = json.dumps([str(family), small.to_dict()], sort_keys=True, default=str)
    found = [_find(_Small(family, small, text), width) for width in widths]
    axes: dict[str, tuple[Axis | None, ...]] = {}
    for structure in found:
        for name, each in structure.axes.items():
            known = axes.get(name, (None,) * len(each))
            axes[name] = tuple(new or old for new, old in zip(each, known, strict=True))
    return Structure(axes, found[0].stacks)


@dataclass(frozen=True)
class _Small:
    """A small model: its class and its configuration. Models are equal if their texts are."""

    family: type[PreTrainedModel] = field(compare=False)
    config: Any = field(compare=False)
    text: str

    @property
    def widths(self) -> Widths:
        return Widths.of(self.config)

    def outlined(self, widths: Widths) -> PreTrainedModel:
        """The model with these widths, without weights."""
        config = copy.deepcopy(self.config)
        widths.write(config)
        with torch.device("meta"), no_init_weights():
            return self.family(config)

    def drawn(self) -> PreTrainedModel:
        """The model in float64, whose weights are to be overwritten."""
        # Not in float32: an axis that is missing in one weight of a late layer may change the logits by a thousandth.
        with no_init_weights():
            return self.family(copy.deepcopy(self.config)).double().eval()


# A sweep builds many students of few shapes, and each takes about as long as to outline three models.
@lru_cache(maxsize=64)
def _find(small: _Small, width: Width) -> Structure:
    family = small.config.model_type
    # On the CPU even while a student is outlined, which is done on torch's meta device.
    with torch.device("cpu"), _errors(family, width):
        model = small.outlined(small.widths)
        stacks = tuple(layers_of(small.config).stacks(model))
        structure = Structure(_axes(small, stacks, width, dict(model.named_modules())), stacks)
        cut = {axis.width for axes in structure.axes.values() for axis in axes if axis is not None}
        can_be_measured = cut == {view.axis.width for view in views_of(model, structure)}
        if not cut or not can_be_measured or not is_invariant(small.drawn(), structure):
            raise TeacherError(cannot_cut(family, "its weights do not follow this width in a way that is known", width))
    return structure


def _errors(family: str, width: Width) -> AbstractContextManager[None]:
    """Raise TeacherError in place of any error of transformers for the small model."""
    problem, remedy = cannot_cut(family, "a small model of it cannot be built", width).split(". ", 1)
    return errors_of_transformers(problem, remedy)


def _small_config(config: Any) -> Any:
    """The configuration with small widths and a small vocabulary, and with all layers."""
    widths, small = Widths.of(config), copy.deepcopy(config)
    replace(SMALL, is_tied=widths.is_tied).write(small)
    if widths.shares_keys:
        small.num_key_value_heads = SMALL.heads // 2
    for name in FOLLOWS_HIDDEN:
        # A size that is not the hidden size must not be equal to the small one by chance.
        if getattr(small, name, None) == SMALL.hidden and getattr(config, name) != config.hidden_size:
            setattr(small, name, SMALL.hidden // 2)
    small.vocab_size = SMALL_VOCABULARY
    for name, value in config.to_dict().items():
        if name.endswith("_token_id") and type(value) is int and not 0 <= value < SMALL_VOCABULARY:
            setattr(small, name, 0)
    small.dtype = torch.float32
    return small


def _axes(small: _Small, stacks: tuple[str, ...], width: Width, modules: Mapping[str, nn.Module]) -> Axes:
    """The axes that follow the width; those of heads and hidden size together where the two are tied."""
    widths = small.widths
    if width == "feed_forward" or not widths.is_tied:
        more = 1 if width == "heads" else 4
        return _changed_axes(small, widths.with_counts({width: widths.count(width) + more}), width)
    wider = widths.with_counts({"heads": widths.heads + 1, "hidden": widths.hidden + widths.head_size})
    return _with_heads(Structure(_changed_axes(small, wider, "hidden"), stacks), modules)


def _changed_axes(small: _Small, wider: Widths, width: Width) -> Axes:
    """The axes whose size differs in the wider model, as axes of one width; none at all if one grows otherwise."""
    before, after = (small.outlined(widths).state_dict() for widths in (small.widths, wider))
    axes: dict[str, tuple[Axis | None, ...]] = {}
    for name in before.keys() & after.keys():
        sizes = list(zip(before[name].shape, after[name].shape, strict=True))
        # MobileBERT's heads do not grow with its hidden size, so that its sizes cannot be said by one number.
        if any(old != new and old * wider.count(width) != new * small.widths.count(width) for old, new in sizes):
            return {}
        if before[name].shape != after[name].shape:
            axes[name] = tuple(None if old == new else _axis(old, small.widths, width) for old, new in sizes)
    return {name: axes[name] for name in before if name in axes}


def _axis(size: int, widths: Widths, width: Width) -> Axis:
    """The axis of this size. A head has an entry for each of its numbers, or one in all, as in a bias of positions."""
    numbers = widths.heads * widths.head_size
    if width == "heads" or (widths.is_tied and width == "hidden" and size == widths.heads):
        return Axis("heads", size // numbers if size % numbers == 0 else size // widths.heads)
    return Axis(width, size // widths.count(width))


def _with_heads(tied: Structure, modules: Mapping[str, nn.Module]) -> Axes:
    """The axes of hidden units and heads, of all axes that grow with both: heads are inside of an attention."""
    axes = dict(tied.axes)
    for layer in range(tied.layers if axes else 0):
        square = [name for name, each in axes.items() if tied.layer(name) == layer and len(each) == 2 and all(each)]
        if not square:
            return {}
        # Modules are defined in the order in which they run: the projection of the heads' results is the last one.
        *inputs, output = square
        axes[output] = _as_heads(axes[output], input_number(modules[output.rpartition(".")[0]]))
        for name in inputs:
            number = 1 - input_number(modules[name.rpartition(".")[0]])
            axes[name] = _as_heads(axes[name], number)
            bias = name.removesuffix("weight") + "bias"
            if bias in axes:
                axes[bias] = (axes[name][number],)
    return axes


def _as_heads(axes: tuple[Axis | None, ...], number: int) -> tuple[Axis | None, ...]:
    """The axes of a weight, of which the one of this number counts heads instead of hidden units."""
    return tuple(replace(axis, width="heads") if axis and at == number else axis for at, axis in enumerate(axes))


def is_invariant(model: PreTrainedModel, structure: Structure) -> bool:
    """Whether the model, with random weights, answers the same if its units are in another order.

    It does not if an axis is missing, or counts something else. The weights of the model are overwritten.
    """
    widths, random = Widths.of(model.config), torch.Generator().manual_seed(0)
    units: Units = {
        "heads": _orders(structure.layers, widths.heads, structure.heads_are_shared, random),
        "feed_forward": _orders(structure.layers, widths.feed_forward, False, random),
        "hidden": torch.randperm(widths.hidden, generator=random),
    }
    weights = {name: _drawn(tensor, random) for name, tensor in model.state_dict().items()}
    before = _answer(model, weights)
    difference = (_answer(model, take_units(weights, structure, units, widths)) - before).abs().max()
    largest = before.abs().max()
    return bool(largest > 0 and difference <= MAX_DIFFERENCE * largest)  # false for nan, too


def _drawn(tensor: Tensor, random: torch.Generator) -> Tensor:
    """Random weights of this shape that keep the size of what they read, so that each of them changes the logits."""
    if not tensor.is_floating_point():
        return tensor
    values = torch.randn(tensor.shape, generator=random, dtype=tensor.dtype)
    return 1 + 0.3 * values if tensor.dim() < 2 else values * 2 / tensor[0].numel() ** 0.5


def _orders(layers: int, count: int, are_equal: bool, random: torch.Generator) -> Tensor:
    """A random order of units for each layer (layers x count)."""
    orders = [torch.randperm(count, generator=random) for _ in range(layers)]
    return torch.stack([orders[0]] * layers if are_equal else orders)


def _answer(model: nn.Module, weights: Mapping[str, Tensor]) -> Tensor:
    """The logits of the model with these weights for one text."""
    model.load_state_dict(dict(weights))
    ids = torch.arange(TOKENS)[None] * 3 % SMALL_VOCABULARY + 2
    with torch.inference_mode():
        logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits.clone()
