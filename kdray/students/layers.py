"""How the layers of a family are counted and copied: one stack in nearly all families, one layer repeated in ALBERT.

`transformer` builds students with these functions. A further kind of layers is one class here and one line in `LAYERS`.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdray.errors import TeacherError
from kdray.models.families import GOOD

PER_LAYER = ("attention_window", "attn_layers", "layer_types", "mlp_layer_types", "no_rope_layers")
"""The settings in configurations of transformers that are lists with one entry for each layer."""


class Layers(Protocol):
    """What a student needs to know of the layers of its source."""

    def count(self, source: PreTrainedModel) -> int:
        """The number of layers. Raises TeacherError if a model of this family cannot be made shallower."""
        ...

    def stacks(self, source: PreTrainedModel) -> list[str]:
        """The names of the module lists that the layers are in."""
        ...

    def config(self, source: Any, chosen: Sequence[int]) -> Any:
        """A copy of the source's configuration, reduced to the chosen layers."""
        ...

    def weights(self, source: PreTrainedModel, chosen: Sequence[int]) -> dict[str, Tensor]:
        """The source's weights by their names in a student of the chosen layers, without those of other layers."""
        ...

    def modules(self, source: PreTrainedModel) -> tuple[nn.Module, ...]:
        """The module of each layer, in order: its output is the state after the layer. Empty: there is none."""
        ...


class StackedLayers:
    """One stack of layers, each with weights of its own; XLM has several lists with one entry for each layer."""

    def count(self, source: PreTrainedModel) -> int:
        depth = getattr(source.config, "num_hidden_layers", None)
        if source.config.is_encoder_decoder or not depth or not _layer_stacks(source, depth):
            raise TeacherError(
                f"student: a {source.config.model_type} model cannot be made shallower, since its layers are not one "
                f"stack with weights of their own. Take {', '.join(GOOD[:-1])} or {GOOD[-1]} as the teacher, or as the "
                "model that the students are built from (student.checkpoint)."
            )
        return int(depth)

    def stacks(self, source: PreTrainedModel) -> list[str]:
        return _layer_stacks(source, source.config.num_hidden_layers)

    def config(self, source: Any, chosen: Sequence[int]) -> Any:
        student = copy.deepcopy(source)
        student.num_hidden_layers = len(chosen)
        for name in PER_LAYER:
            entries = getattr(source, name, None)
            if entries:
                setattr(student, name, [entries[layer] for layer in chosen])
        return student

    def weights(self, source: PreTrainedModel, chosen: Sequence[int]) -> dict[str, Tensor]:
        return _renumbered_weights(source, self.stacks(source), chosen)

    def modules(self, source: PreTrainedModel) -> tuple[nn.Module, ...]:
        depth = getattr(source.config, "num_hidden_layers", None)
        stacks = _layer_stacks(source, depth) if depth and not source.config.is_encoder_decoder else []
        # The parts of a layer of XLM stand in several lists, so no module is a layer.
        return tuple(_stack(source, stacks[0])) if len(stacks) == 1 else ()


class AlternatingLayers(StackedLayers):
    """GPT-Neo: one stack, whose kinds of attention stand in the configuration as patterns that are repeated."""

    def config(self, source: Any, chosen: Sequence[int]) -> Any:
        kinds = [source.attention_layers[layer] for layer in chosen]
        changes = {"num_layers": len(chosen), "attention_layers": kinds, "attention_types": [[kinds, 1]]}
        # Made anew, because a configuration is refused in which the number of layers and the patterns disagree.
        return type(source)(**{**source.to_dict(), **changes})


class RepeatedLayers:
    """ALBERT: `num_hidden_groups` groups of layers, each of which is repeated until there are `num_hidden_layers`.

    A published ALBERT has one group, so a student of any depth has all weights of the source, and repeats them less.
    """

    def count(self, source: PreTrainedModel) -> int:
        return int(source.config.num_hidden_layers)

    def stacks(self, source: PreTrainedModel) -> list[str]:
        return [name for name, _ in source.named_modules() if name.endswith(".albert_layer_groups")]

    def config(self, source: Any, chosen: Sequence[int]) -> Any:
        groups = self._chosen_groups(source, chosen)
        student = copy.deepcopy(source)
        student.num_hidden_layers, student.num_hidden_groups = len(chosen), len(groups)
        # The student computes the group of a layer from both numbers. It must be the group that the layer had.
        if [groups[_group_of(student, layer)] for layer in range(len(chosen))] != [
            _group_of(source, layer) for layer in chosen
        ]:
            raise TeacherError(
                f"student: layers {tuple(chosen)} of this albert model with {source.num_hidden_groups} groups of "
                "layers cannot stand alone, because a student repeats each group equally often. Try another depth."
            )
        return student

    def weights(self, source: PreTrainedModel, chosen: Sequence[int]) -> dict[str, Tensor]:
        return _renumbered_weights(source, self.stacks(source), self._chosen_groups(source.config, chosen))

    def modules(self, source: PreTrainedModel) -> tuple[nn.Module, ...]:
        groups = _stack(source, self.stacks(source)[0])
        return tuple(groups[_group_of(source.config, layer)] for layer in range(self.count(source)))

    def _chosen_groups(self, source: Any, chosen: Sequence[int]) -> list[int]:
        return sorted({_group_of(source, layer) for layer in chosen})


class ShorteningBlocks:
    """Funnel: blocks of layers (`block_sizes`), each of which shortens the text, so the place of a layer is its cost.

    A student's costs are measured once for its depth, whichever layers it has, so no student is built from Funnel.
    """

    def count(self, source: PreTrainedModel) -> int:
        raise TeacherError(
            f"student: a {source.config.model_type} model cannot be made shallower: its layers stand in blocks "
            f"(block_sizes={list(source.config.block_sizes)}) that shorten the text, so a layer cannot be left out "
            "without changing the others. It may teach students of a smaller model (student.checkpoint)."
        )

    def stacks(self, source: PreTrainedModel) -> list[str]:
        raise NotImplementedError("`count` refuses this family")

    def config(self, source: Any, chosen: Sequence[int]) -> Any:
        raise NotImplementedError("`count` refuses this family")

    def weights(self, source: PreTrainedModel, chosen: Sequence[int]) -> dict[str, Tensor]:
        raise NotImplementedError("`count` refuses this family")

    def modules(self, source: PreTrainedModel) -> tuple[nn.Module, ...]:
        return ()  # a shortened text has no state of each token


LAYERS: dict[str, Layers] = {"albert": RepeatedLayers(), "funnel": ShorteningBlocks(), "gpt_neo": AlternatingLayers()}
"""The model types whose layers are not one stack."""


def layers_of(config: Any) -> Layers:
    """How the layers of this configuration's family are counted and copied."""
    return LAYERS.get(config.model_type, StackedLayers())


def transformer_layers(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """The module of each layer of a Transformer, in order: its output is the hidden states after the layer.

    A module that is repeated (ALBERT) stands there several times. Empty for families without such modules.
    """
    return layers_of(model.config).modules(model)


def reduced_config(source: Any, chosen: Sequence[int]) -> Any:
    """A copy of the source's configuration, reduced to the chosen layers, for weights in float32."""
    student = layers_of(source).config(source, chosen)
    # Many checkpoints are in half precision, which is too coarse for the small steps of AdamW.
    student.dtype = torch.float32
    return student


def _group_of(config: Any, layer: int) -> int:
    """The group of layers that ALBERT runs as its layer with this number."""
    return int(layer / (config.num_hidden_layers / config.num_hidden_groups))


def _layer_stacks(model: PreTrainedModel, depth: int) -> list[str]:
    """The names of the module lists with one entry for each layer: one list in most families, several in XLM."""
    stacks: list[str] = []
    # A module list inside a layer may have as many entries by chance.
    for name, module in model.named_modules():
        is_inside = any(name.startswith(f"{stack}.") for stack in stacks)
        if isinstance(module, nn.ModuleList) and len(module) == depth and not is_inside:
            stacks.append(name)
    return stacks


def _stack(model: PreTrainedModel, name: str) -> nn.ModuleList:
    stack = model.get_submodule(name)
    assert isinstance(stack, nn.ModuleList)
    return stack


def _renumbered_weights(source: PreTrainedModel, stacks: Sequence[str], chosen: Sequence[int]) -> dict[str, Tensor]:
    """The source's weights; in the module lists `stacks` only the chosen entries, numbered from 0."""
    layer_name = re.compile(rf"({'|'.join(re.escape(name) for name in stacks)})\.(\d+)\.(.*)")
    new_number = {layer: number for number, layer in enumerate(chosen)}
    weights: dict[str, Tensor] = {}
    for name, tensor in source.state_dict().items():
        match = layer_name.fullmatch(name)
        if match is None:  # the embeddings or the head
            weights[name] = tensor
            continue
        stack, layer, rest = match.groups()
        if int(layer) in new_number:
            weights[f"{stack}.{new_number[int(layer)]}.{rest}"] = tensor
    return weights
