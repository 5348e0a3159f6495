"""Students that read a text word by word in both directions: layers of an LSTM or a GRU (Tang et al. 2019,
arXiv:1903.12136, distil BERT into one)."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from kdray.errors import SpecError
from kdray.networks.recurrent_model import RecurrentConfig
from kdray.students.encoders import EncoderStudent, SourceShape
from kdray.tasks.task import Task


class RecurrentStudent(EncoderStudent):
    """A bidirectional LSTM or GRU with drawn weights, above the embeddings of its source or drawn ones."""

    config_class: ClassVar[type[RecurrentConfig]] = RecurrentConfig

    family: Literal["recurrent"] = "recurrent"
    cell: Literal["lstm", "gru"] = "lstm"
    """Long short-term memory, or gated recurrent units, which have three quarters of its weights."""
    depth: int = Field(1, ge=1, le=500)
    """The number of layers; the source does not limit it."""
    width: int = Field(256, ge=1)
    """The width of each direction of a layer."""
    pooling: Literal["last", "max", "attention"] | None = None
    """How a text gets one vector: `last`, the last state of each direction; `max`, the largest value of each state;
    `attention`, a mean with weights that are learnt. None: `max`. A tagger has none, because it answers each word."""

    def sizes(self, source: SourceShape) -> dict[str, Any]:
        """See `EncoderStudent`."""
        sizes = {"cell": self.cell, "num_layers": self.depth, "width": self.width}
        return sizes if source.answers_each_word else {**sizes, "pooling": self.pooling or "max"}

    def check_task(self, task: Task) -> None:
        """See `Student`."""
        super().check_task(task)
        if task.answers_each_word and self.pooling is not None:
            raise SpecError(
                f"student.pooling: got {self.pooling!r}, but a student for {task.name} answers each word, so a text "
                "does not become one vector. Leave student.pooling out."
            )
