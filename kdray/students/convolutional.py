"""Students with filters over neighbouring words: Kim 2014 (arXiv:1408.5882) for one answer for a text, and residual
dilated blocks (Strubell et al. 2017, arXiv:1702.02098) for tagging."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from kdray.errors import SpecError
from kdray.networks.convolutional_model import ConvolutionalConfig
from kdray.students.encoders import EncoderStudent, SourceShape
from kdray.tasks.task import Task

KIM = (3, 4, 5)
"""The widths of the filters in Kim 2014."""


class ConvolutionalStudent(EncoderStudent):
    """A convolutional network with drawn weights, above the embeddings of its source or drawn ones."""

    config_class: ClassVar[type[ConvolutionalConfig]] = ConvolutionalConfig

    family: Literal["convolutional"] = "convolutional"
    filters: int = Field(128, ge=1)
    """The number of filters of each width, and of each block."""
    widths: tuple[Annotated[int, Field(ge=1, le=100)], ...] | None = Field(None, min_length=1)
    """The numbers of words that the filters of a text read; None: 3, 4 and 5. A tagger has blocks only. In a space and
    on a command line each choice is a text, such as "3,4,5"."""
    depth: int | None = Field(None, ge=0, le=500)
    """The number of residual blocks, each of which reads words that are farther away: their distances are 1, 2, 4, 8,
    then 1 again. None: 4 for tagging; else 0, as in Kim 2014, where the filters read the embeddings themselves."""
    kernel: int = Field(3, ge=1, le=99)
    """The number of words that a filter of a block reads; odd."""

    @field_validator("widths", mode="before")
    @classmethod
    def _split_widths(cls, widths: Any) -> Any:
        # Optuna and MLflow store a choice as a number or a text, not as a list.
        return tuple(widths.split(",")) if isinstance(widths, str) else widths

    @field_validator("kernel")
    @classmethod
    def _check_kernel(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError(f"got {kernel}; give an odd number, so that a filter reads as many words on each side.")
        return kernel

    def sizes(self, source: SourceShape) -> dict[str, Any]:
        """See `EncoderStudent`."""
        depth = self._depth(source.answers_each_word)
        # Without blocks their kernel has no meaning, and must not make another architecture.
        sizes = {"num_blocks": depth, "filters": self.filters, **({"kernel": self.kernel} if depth else {})}
        return sizes if source.answers_each_word else {**sizes, "filter_widths": list(self.widths or KIM)}

    def check_task(self, task: Task) -> None:
        """See `Student`."""
        super().check_task(task)
        if task.answers_each_word and self.widths is not None:
            raise SpecError(
                f"student.widths: got {list(self.widths)}, but a student for {task.name} answers each word, so it has "
                "blocks only. Leave student.widths out; student.depth is the number of blocks, student.kernel the "
                "width of their filters."
            )
        if task.answers_each_word and self._depth(answers_each_word=True) == 0:
            raise SpecError(
                f"student.depth: got 0, but a student for {task.name} without blocks would not see the words around a "
                "word; give 1 or more."
            )

    def _depth(self, answers_each_word: bool) -> int:
        if self.depth is not None:
            return self.depth
        return 4 if answers_each_word else 0
