"""Student: what every family of students has. A new family is one new file with a subclass, and one line in `students`.

A student is a model of transformers, whatever its family: it has a configuration, it is called with token ids and an
attention mask, and it is saved as safetensors. `kdray.training` trains it, `kdray.evaluation` measures its costs.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from kdray.models.pretrained import Pretrained
from kdray.settings import Settings, later_field
from kdray.students.cut_vocabulary import MostUsedPieces
from kdray.students.vocabularies import Vocabulary
from kdray.tasks.task import Task


class Student(Settings):
    """The settings that all families have: which model a student gets its words from, and its dropout."""

    kind_field: ClassVar[str] = "family"
    is_plain: ClassVar[bool] = False
    """Whether transformers alone loads it. Others are served by their ONNX graph outside of kdray."""
    is_cut: ClassVar[bool] = False
    """Whether its weights are those of its source, so that it answers as its source does before any training."""
    has_attention: ClassVar[bool] = False
    """Whether its layers have the self-attention of its source, so that the attention of both can be compared."""

    family: str
    """Which kind of model the student is; `students.FAMILIES` has all of them."""
    checkpoint: str | None = None
    """A smaller checkpoint (a folder or a hub name) that is the source instead of the teacher."""
    source: int | str | None = later_field(None)
    """The teacher that is the source if several teach: its number in `teacher.model`, from 0, or its name there.
    None: the one with the best quality on the validation rows."""
    revision: str | None = None
    """The revision of the checkpoint on the hub."""
    vocabulary: int | None = later_field(None, ge=1)
    """The number of pieces of the source's tokenizer that the student reads: those that the texts to train on use most,
    with all special tokens and single characters. None: all pieces."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """The value of all dropout probabilities of the student; None: the probabilities of the source, or of the
    family."""

    @property
    def own_vocabulary(self) -> Vocabulary | None:
        """The vocabulary of the student, if it is not that of the teacher or the checkpoint."""
        return None if self.vocabulary is None else MostUsedPieces(self.vocabulary)

    @property
    def shape(self) -> Self:
        """The student with the default values of all settings that change neither its size nor its speed."""
        return self.model_copy(update={"source": None, "revision": None, "dropout": None})

    def architecture(self, source: Pretrained) -> dict[str, Any]:
        """The settings that size and latency depend on: students of one source with equal values have equal costs."""
        raise NotImplementedError

    def check_task(self, task: Task) -> None:
        """Raise SpecError for a task that students of this family cannot answer."""

    def check(self, source: Pretrained) -> None:
        """Build the student without weights, and only for the errors of `build`, before any slot starts."""
        self.build_outline(source.outline())

    def build(self, source: PreTrainedModel, seed: int) -> PreTrainedModel:
        """Build a new student in float32 and evaluation mode, on the source's device; the source is not changed.

        The student has the outputs and the label names of the source. `seed` decides random weights. Raises SpecError
        for settings that do not fit the source, TeacherError for a source that no student of this family can have.
        """
        raise NotImplementedError

    def build_outline(self, source: PreTrainedModel) -> PreTrainedModel:
        """Build the student without weights, from a source without weights (`pretrained.outline`), in little time.

        Raises the errors of `build`.
        """
        raise NotImplementedError

    def inner_layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The module of each layer of this student's model, in order: its output is the states after the layer.

        A module that is repeated stands there several times. Empty for families without states of each token.
        """
        raise NotImplementedError
