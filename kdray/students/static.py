"""Students that take the mean of the embeddings of a text: the order of the words has no meaning (fastText, Joulin et
al. 2016, arXiv:1607.01759)."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from kdray.networks.static_model import StaticConfig
from kdray.students.encoders import EncoderStudent, SourceShape


class StaticStudent(EncoderStudent):
    """The weighted mean of the embeddings, and drawn layers above it."""

    config_class: ClassVar[type[StaticConfig]] = StaticConfig

    family: Literal["static"] = "static"
    depth: int = Field(1, ge=0, le=500)
    """The number of hidden layers above the mean; 0: none, as in fastText."""
    width: int = Field(256, ge=1)
    """The width of the hidden layers."""
    weighted: bool = True
    """Whether a weight of each token of the vocabulary is learnt; else all tokens of a text have the same weight."""

    def sizes(self, source: SourceShape) -> dict[str, Any]:
        """See `EncoderStudent`."""
        sizes = {"num_layers": self.depth, "weighted": self.weighted}
        # Without hidden layers their width has no meaning, and must not make another architecture.
        return {**sizes, "width": self.width} if self.depth else sizes

    def _no_head_sentence(self) -> str:
        return (
            "student.family: got 'static', but a static student cannot tag words: a word has the same embedding in "
            "every sentence, so it would get the same tag everywhere. Take 'recurrent', 'convolutional' or "
            "'transformer' for token classification."
        )
