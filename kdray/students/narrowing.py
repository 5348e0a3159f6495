"""Cuts a model to smaller widths: each weight keeps the first units of each width, as a smaller tensor.

`importance` puts the most important units first before.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdray.students.axes import Structure, Units, structure_of, take_units
from kdray.students.widths import Width, Widths, requested_widths


@dataclass(frozen=True)
class Narrowing:
    """The widths before and after the cut, and the axes that are cut."""

    before: Widths
    after: Widths
    structure: Structure

    def config(self, config: Any) -> Any:
        """A copy of the configuration with the smaller widths."""
        narrow = copy.deepcopy(config)
        self.after.write(narrow)
        return narrow

    def cut(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """These weights with the first units of each width only. The weights are not changed."""
        names = self.after.cut_from(self.before)
        layers = self.structure.layers
        units: Units = {name: _first(self.after.count(name), 0 if name == "hidden" else layers) for name in names}
        return take_units(weights, self.structure, units, self.before)


def narrowing_of(family: type[PreTrainedModel], config: Any, requested: Mapping[Width, int | None]) -> Narrowing | None:
    """How a model of this configuration is cut to the requested widths; None if it has them.

    Raises SpecError for widths that do not fit the model, TeacherError for a family that cannot be cut.
    """
    if all(count is None for count in requested.values()):
        return None
    before = Widths.of(config)
    after = requested_widths(before, requested, config.model_type)
    # A width that follows from another one has its axes there, too.
    names = [name for name in after.cut_from(before) if requested[name] is not None]
    return Narrowing(before, after, structure_of(family, config, names)) if names else None


def _first(count: int, layers: int) -> Tensor:
    """The numbers from 0 to `count` - 1; with `layers`, once for each layer."""
    numbers = torch.arange(count, device="cpu")  # not torch's meta device, while a student is outlined
    return numbers.expand(layers, count) if layers else numbers
