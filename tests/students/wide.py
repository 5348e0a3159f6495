"""Wide models that hide a narrow one: half of their units repeat the other half, or nobody reads them."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kdray.students.axes import Structure, input_number, structure_of
from kdray.students.widths import WIDTHS, Widths
from tests.models.families import random_model, tiny_config

CUT = ("albert", "bert", "deberta-v2", "distilbert", "electra", "gpt2", "modernbert", "mpnet", "roberta")
"""The families of which all widths can be cut."""
NARROW = {"heads": 2, "feed_forward": 24, "hidden": 16}


def config_of(family: str, **changes: Any) -> Any:
    """A tiny configuration with two heads of eight numbers and 24 feed-forward units."""
    config = tiny_config(family)
    widths = Widths.of(config)
    widths.with_counts({**NARROW, **changes}).write(config)  # type: ignore[dict-item]
    return config


def structure(model: PreTrainedModel) -> Structure:
    return structure_of(type(model), model.config, WIDTHS)


def hidden_in_a_wide_model(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A random narrow model, and one of twice its widths that answers the same.

    The second half of all units repeats the first one, and no weight reads it.
    """
    narrow = random_model(config_of(family))
    wide = random_model(config_of(family, heads=4, feed_forward=48, hidden=32), seed=1)
    modules, axes = dict(narrow.named_modules()), structure(narrow).axes
    weights = {}
    for name, tensor in narrow.state_dict().items():
        module = modules[name.rpartition(".")[0]]
        for number, axis in enumerate(axes.get(name, ())):
            if axis is not None:
                is_layer = isinstance(module, torch.nn.Linear | Conv1D) and tensor.dim() == 2
                is_read = is_layer and number == input_number(module)
                tensor = _doubled(tensor, number, axis.groups, is_read)
        weights[name] = tensor
    wide.load_state_dict(weights)
    return narrow, wide


def _doubled(tensor: Tensor, number: int, groups: int, is_read: bool) -> Tensor:
    """The tensor with twice the units on this axis: copies, or zeros where the axis is what a module reads."""
    parts = tensor.unflatten(number, (groups, -1))
    other = torch.zeros_like(parts) if is_read else parts
    return torch.cat([parts, other], dim=number + 1).flatten(number, number + 1)
