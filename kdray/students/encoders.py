"""EncoderStudent: what the families of small models have in common, whose layers are drawn and not copied.

Such a student has the tokenizer, the outputs and the label names of its source, and may have its embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from kdray.errors import SpecError
from kdray.models.families import VOCABULARY_HEADS
from kdray.models.pretrained import Pretrained
from kdray.networks.encoder_model import EncoderConfig, EncoderModel
from kdray.networks.registered import OWN_MODELS
from kdray.students.embedding_tables import narrow_table, source_table
from kdray.students.word_student import DRAWN, FROM_SOURCE, WordStudent
from kdray.tasks.heads import head_of_class
from kdray.tasks.task import Task

DROPOUT = 0.1
"""The dropout of a student whose settings name none."""


@dataclass(frozen=True)
class SourceShape:
    """What the shape of a student depends on."""

    vocabulary: int
    """The rows of the source's embedding table."""
    width: int
    """The width of the source's embedding table."""
    head: str
    """The head of the source, a key of `kdray.tasks.heads.HEADS`."""

    @classmethod
    def of(cls, source: PreTrainedModel) -> Self:
        """The shape of this source. Raises TeacherError if it does not have one embedding table."""
        rows, width = source_table(source).shape
        return cls(rows, width, head_of_class(type(source)))

    @property
    def answers_each_word(self) -> bool:
        """Whether the source answers each token."""
        return self.head == "ForTokenClassification"


class EncoderStudent(WordStudent):
    """The settings that the recurrent, the convolutional and the static family have in common."""

    config_class: ClassVar[type[EncoderConfig]]

    embedding_width: int | None = Field(None, ge=1)
    """The width of the embeddings; None: the source's, or that of the file. Embeddings of a wider source are projected
    on their principal components."""

    def sizes(self, source: SourceShape) -> dict[str, Any]:
        """The entries of the configuration that the family has, besides those of `EncoderConfig`."""
        raise NotImplementedError

    def architecture(self, source: Pretrained) -> dict[str, Any]:
        """See `Student`."""
        shape = _shape_of(source)
        return {"family": self.family, "embedding_width": self._width(shape), **self.sizes(shape)}

    @property
    def shape(self) -> Self:
        """See `Student`: where embeddings come from changes no cost, but a file decides their width."""
        # Drawn embeddings of a width of their own may be wider than those of the source, which then do not allow it.
        if self.vector_file is not None or (self.embeddings == DRAWN and self.embedding_width is not None):
            return super().shape
        return super().shape.model_copy(update={"embeddings": FROM_SOURCE})

    def build(self, source: PreTrainedModel, seed: int) -> PreTrainedModel:
        """See `Student`. All weights but the embeddings of the source are drawn."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            student = self._model(source)
        if self.embeddings != DRAWN:
            table_VxW = narrow_table(source_table(source), student.config.embedding_width)
            with torch.no_grad():
                student.get_input_embeddings().weight.copy_(table_VxW)
        return student.to(source.device).eval()

    def build_outline(self, source: PreTrainedModel) -> PreTrainedModel:
        """See `Student`."""
        with torch.device("meta"), no_init_weights():
            return self._model(source)

    def inner_layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """See `Student`."""
        assert isinstance(model, EncoderModel)
        return model.layers

    def _model(self, source: PreTrainedModel) -> PreTrainedModel:
        shape = SourceShape.of(source)
        models = OWN_MODELS[self.config_class]
        if shape.head not in models:
            raise SpecError(self._no_head_sentence())
        config = self.config_class(
            vocab_size=shape.vocabulary,
            embedding_width=self._width(shape),
            dropout=DROPOUT if self.dropout is None else self.dropout,
            pad_token_id=source.config.pad_token_id,
            id2label=dict(source.config.id2label),
            label2id=dict(source.config.label2id),
            problem_type=source.config.problem_type,
            dtype=torch.float32,
            **self.sizes(shape),
        )
        return models[shape.head](config)

    def check_task(self, task: Task) -> None:
        """See `Student`."""
        if task.head in VOCABULARY_HEADS:
            raise SpecError(
                f"student.family: got {self.family!r}, but only a transformer has the outputs of {task.name}. Take "
                "'transformer', and this family for a task with labels."
            )
        if task.head not in OWN_MODELS[self.config_class]:
            raise SpecError(self._no_head_sentence())

    def _no_head_sentence(self) -> str:
        """Why students of this family have no answer for each word."""
        raise NotImplementedError

    def _width(self, source: SourceShape) -> int:
        """The width of the student's embeddings. Raises SpecError if the source's embeddings are narrower."""
        width = self.embedding_width or source.width
        if width > source.width and self.embeddings != DRAWN:
            raise SpecError(
                f"student.embedding_width: got {width}, but the embeddings of the model that the student is built from "
                f"have a width of {source.width}; allowed are 1 to {source.width}. With student.embeddings='drawn' any "
                "width is allowed."
            )
        return width


@lru_cache(maxsize=64)
def _shape_of(source: Pretrained) -> SourceShape:
    # Cached, because a sweep asks for the architecture of each of its students, and an outline takes 0.1 s.
    return SourceShape.of(source.outline())
