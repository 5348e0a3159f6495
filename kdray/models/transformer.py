"""Students that are shallower copies of a Transformer: its embeddings and head, and some of its layers.

The source is the teacher, or a smaller checkpoint that `trial` loads. A student is built as transformers would load it
from its own configuration, then given the source's weights: what is saved is what is loaded again. How it is trained
stands in `training`, what it costs in `evaluation`.
"""

import copy
import re
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from kdray.errors import SpecError, TeacherError
from kdray.settings import Settings

PER_LAYER = ("attention_window", "layer_types", "mlp_layer_types", "no_rope_layers")
"""Settings of configurations that are lists with one entry a layer."""


class TransformerStudent(Settings):
    """How deep the student is, and what its weights start from."""

    depth: int | None = Field(None, ge=1)
    """Number of layers; None: as many as the source."""
    layers: Literal["evenly", "first", "last", "random"] = "evenly"
    """Which of the source's layers it starts from. `random`: none, and all other weights are drawn anew as well."""
    checkpoint: str | None = None
    """A smaller checkpoint (a folder or a hub name) as the source, instead of the teacher."""
    revision: str | None = None
    """The checkpoint's revision on the hub."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Every dropout probability of the student; None: as in the source."""

    def chosen_layers(self, source_layers: int) -> tuple[int, ...]:
        """The source's layers, from 0, that stand in the student, in order (`random`: in whose places its own stand).

        Raises SpecError when the source has fewer layers than the student shall have.
        """
        depth = self.depth or source_layers
        if depth > source_layers:
            raise SpecError(
                f"student.depth: got {depth}, but the model it is built from has {source_layers} layers; "
                f"allowed are 1 to {source_layers}."
            )
        match self.layers:
            case "first" | "random":
                return tuple(range(depth))
            case "last":
                return tuple(range(source_layers - depth, source_layers))
            case "evenly":
                return _evenly(source_layers, depth)

    def architecture(self, source_layers: int) -> dict[str, Any]:
        """What size and latency depend on, besides the source: students with the same one cost the same."""
        return {"depth": len(self.chosen_layers(source_layers))}

    @property
    def shape(self) -> "TransformerStudent":
        """The student without what changes neither its size nor its speed."""
        return TransformerStudent(depth=self.depth, checkpoint=self.checkpoint)

    def build(self, source: PreTrainedModel, seed: int) -> PreTrainedModel:
        """A new student in float32 and evaluation mode, on the source's device; the source is not changed.

        It has the source's head and label names. `seed` decides the weights that are drawn. Raises SpecError for a
        depth that the source does not have, TeacherError for a source that cannot be made shallower.
        """
        chosen = self.chosen_layers(_depth(source))
        config = _shallower(source.config, chosen)
        if self.dropout is not None:
            _set_dropout(config, self.dropout)
        student = _drawn(type(source), config, seed) if self.layers == "random" else _copied(source, config, chosen)
        return student.to(source.device).eval()


def _evenly(source_layers: int, depth: int) -> tuple[int, ...]:
    """Evenly spaced with the first and the last; the first alone for depth 1. 12 to 6: 0 2 4 7 9 11."""
    if depth == 1:
        return (0,)
    gaps, span = depth - 1, source_layers - 1
    return tuple((2 * place * span + gaps) // (2 * gaps) for place in range(depth))


def _depth(source: PreTrainedModel) -> int:
    """The number of the source's layers; TeacherError when it does not hold them as one stack of that height."""
    family, depth = source.config.model_type, getattr(source.config, "num_hidden_layers", None)
    if source.config.is_encoder_decoder or not depth or not _stacks(source, depth):
        raise TeacherError(
            f"student: a {family} model cannot be made shallower, since its layers are not one stack with weights of "
            f"their own. Use a model such as BERT, RoBERTa, DistilBERT, ELECTRA, MPNet, DeBERTa-v2 or ModernBERT."
        )
    return int(depth)


def _stacks(model: PreTrainedModel, depth: int) -> list[str]:
    """The names of the module lists that hold one entry a layer (one list in most families, several in XLM)."""
    stacks: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{stack}.") for stack in stacks)
        if isinstance(module, nn.ModuleList) and len(module) == depth and not inside:
            stacks.append(name)
    return stacks


def _shallower(config: Any, chosen: tuple[int, ...]) -> Any:
    """A copy of the configuration for these layers alone."""
    shallower = copy.deepcopy(config)
    shallower.num_hidden_layers = len(chosen)
    shallower.dtype = torch.float32  # AdamW's small steps are lost in the half precision of many checkpoints
    for name in PER_LAYER:
        if types := getattr(config, name, None):
            setattr(shallower, name, [types[layer] for layer in chosen])
    return shallower


def _set_dropout(config: Any, probability: float) -> None:
    """Set every probability; one that is None follows another."""
    for name, value in config.to_dict().items():
        if ("dropout" in name or "pdrop" in name) and type(value) in (int, float):
            setattr(config, name, probability)


def _drawn(family: type[PreTrainedModel], config: Any, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family(config).float()


def _copied(source: PreTrainedModel, config: Any, chosen: tuple[int, ...]) -> PreTrainedModel:
    with no_init_weights():  # four times quicker than a deep copy of the source
        student: PreTrainedModel = type(source)(config).float()
    # What the student has no place for is left: ModernBERT's first layer has no norm, so a later one loses its own.
    lacking = student.load_state_dict(_renumbered(source, chosen), strict=False).missing_keys
    if lacking:
        raise TeacherError(
            f"student: layers {chosen} of this {config.model_type} model cannot stand alone, "
            f"they have no weights for {', '.join(lacking)}. Try layers='first'."
        )
    student.tie_weights()
    return student


def _renumbered(source: PreTrainedModel, chosen: tuple[int, ...]) -> dict[str, Tensor]:
    """The source's weights under the names they have in a student of these layers."""
    stacks = "|".join(re.escape(name) for name in _stacks(source, source.config.num_hidden_layers))
    layer_name = re.compile(rf"({stacks})\.(\d+)\.(.*)")
    place = {layer: place for place, layer in enumerate(chosen)}
    renumbered: dict[str, Tensor] = {}
    for name, tensor in source.state_dict().items():
        found = layer_name.fullmatch(name)
        if found is None:
            renumbered[name] = tensor
        elif int(found[2]) in place:
            renumbered[f"{found[1]}.{place[int(found[2])]}.{found[3]}"] = tensor
    return renumbered
