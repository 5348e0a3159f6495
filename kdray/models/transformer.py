"""Students that are copies of a Transformer with fewer layers: its embeddings, its head, and some of its layers.

The source is the teacher, or a smaller checkpoint. A student is built from its own configuration, as transformers does
when it loads a model, and then gets the weights of the source: a saved student is therefore the same when it is loaded.
`kdray.training` trains a student, `kdray.evaluation` measures its costs.
"""

from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from kdray.errors import SpecError, TeacherError
from kdray.models.checks import errors_of_transformers
from kdray.models.families import GOOD, depends_on_padding
from kdray.models.layers import layers_of, reduced_config
from kdray.models.pretrained import Pretrained
from kdray.models.student import Student
from kdray.settings import later_field


class TransformerStudent(Student):
    """A copy of a Transformer with fewer layers: their number, and where its initial weights come from."""

    is_cut: ClassVar[bool] = True

    family: Literal["transformer"] = later_field("transformer")
    depth: int | None = Field(None, ge=1)
    """The number of layers; None: as many as the source has."""
    layers: Literal["evenly", "first", "last", "random"] = "evenly"
    """Which layers of the source are copied. `random`: none, and all other weights are drawn at random, too."""

    def chosen_layers(self, source_layers: int) -> tuple[int, ...]:
        """The numbers of the source's layers that the student has, from 0, in ascending order.

        For `random` these layers are not copied, but the student's configuration takes over their entries (the kind of
        attention, for example). Raises SpecError if the student has more layers than the source.
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

    def architecture(self, source: Pretrained) -> dict[str, Any]:
        """See `Student`."""
        return {"depth": len(self.chosen_layers(source.layers))}

    @property
    def shape(self) -> Self:
        """See `Student`: which layers are copied changes no cost."""
        return super().shape.model_copy(update={"layers": "evenly"})

    def check(self, source: Pretrained) -> None:
        """See `Student`."""
        self.chosen_layers(source.layers)
        if depends_on_padding(source.config().model_type):
            raise TeacherError(padding_sentence(source.config().model_type))
        super().check(source)

    def build(self, source: PreTrainedModel, seed: int) -> PreTrainedModel:
        """See `Student`. Raises SpecError for a depth that the source does not have."""
        chosen = self.chosen_layers(layers_of(source.config).count(source))
        config = reduced_config(source.config, chosen)
        if self.dropout is not None:
            _set_dropout(config, self.dropout)
        with _building_errors(source, chosen):
            if self.layers == "random":
                student = _draw_model(type(source), config, seed)
            else:
                student = _copy_layers(source, config, chosen)
        return student.to(source.device).eval()

    def build_outline(self, source: PreTrainedModel) -> PreTrainedModel:
        """See `Student`."""
        with torch.device(source.device):
            return self.build(source, seed=0)


def padding_sentence(family: str) -> str:
    """Why no student is cut from a model of this family, whose answer for a text depends on the padding behind it."""
    return (
        f"student: the answer of this {family} model for a text depends on the padding behind the text, so students of "
        "it would learn from, and answer, another text in each batch. It may teach students that are built from "
        f"another model: say --set student.checkpoint=..., the folder or hub name of a model such as {', '.join(GOOD)}."
    )


def _evenly(source_layers: int, depth: int) -> tuple[int, ...]:
    """Evenly spaced layers with the first and the last one; 6 of 12: 0 2 4 7 9 11. Depth 1: the first layer."""
    if depth == 1:
        return (0,)
    gaps, span = depth - 1, source_layers - 1
    # place * span / gaps, rounded half up, in integers: round() would round half to even.
    return tuple((2 * place * span + gaps) // (2 * gaps) for place in range(depth))


def _building_errors(source: PreTrainedModel, chosen: tuple[int, ...]) -> AbstractContextManager[None]:
    """Raise TeacherError in place of any error of transformers for a model of the chosen layers."""
    return errors_of_transformers(
        f"student: a {source.config.model_type} model cannot be made shallower: layers {chosen} of it do not make a "
        "model",
        f"Take {', '.join(GOOD[:-1])} or {GOOD[-1]} as the teacher, or as the model that the students are built from "
        "(student.checkpoint).",
    )


def _set_dropout(config: Any, probability: float) -> None:
    """Set all dropout probabilities of the configuration.

    A probability that is None stays None: the model then uses another one in its place.
    """
    for name, value in config.to_dict().items():
        # GPT-2 calls its probabilities embd_pdrop, resid_pdrop and attn_pdrop.
        if ("dropout" in name or "pdrop" in name) and type(value) in (int, float):
            setattr(config, name, probability)


def _draw_model(family: type[PreTrainedModel], config: Any, seed: int) -> PreTrainedModel:
    """A model with random weights; torch's global random generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family(config).float()


def _copy_layers(source: PreTrainedModel, config: Any, chosen: tuple[int, ...]) -> PreTrainedModel:
    """A model with the weights of these layers of the source, and of its embeddings and head.

    Raises TeacherError if the student needs weights that these layers do not have.
    """
    # Not a deep copy of the source with fewer layers: that takes longer (0.84 s instead of 0.3 s for BERT-base), and it
    # is wrong for ModernBERT, whose layers differ by position. All weights are overwritten below, so none is drawn.
    with no_init_weights():
        student: PreTrainedModel = type(source)(config).float()
    # Not strict: a weight without a place in the student is dropped. ModernBERT's first layer has no attention norm, so
    # a later layer in the first place loses its norm.
    missing_keys = student.load_state_dict(layers_of(config).weights(source, chosen), strict=False).missing_keys
    if missing_keys:
        raise TeacherError(
            f"student: layers {chosen} of this {config.model_type} model cannot stand alone, "
            f"they have no weights for {', '.join(missing_keys)}. Try layers='first'."
        )
    student.tie_weights()
    return student
