"""What a model answers, for people: a line on a screen, and the columns that a file with predictions gets.

Each task has an answer of its own; `kdray.export.prediction` prints and writes them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from torch import Tensor, nn

from kdray.data.task_data import Encoded

PREDICTED, PROBABILITY = "predicted", "probability"
"""Names of the columns with the answer, and with its probability."""


T = TypeVar("T")
Progress: TypeAlias = Callable[[float], None]
"""A function that receives the complete share of the texts."""


class Answer(Protocol):
    """The answer for one text."""

    def cells(self) -> list[str]:
        """The answer as cells of a line, such as the label and its probability."""
        ...

    def columns(self) -> dict[str, Any]:
        """Name of a column in a file -> the value in the row of this text; the same names for every answer."""
        ...


@dataclass(frozen=True)
class Continuation:
    """How a causal language model continues a text."""

    tokens: int = 32
    """The most tokens that are added."""
    temperature: float = 0.0
    """Tokens are drawn with their probabilities at this temperature; 0: the most probable token is taken."""
    seed: int = 0
    """Of the drawn tokens."""


class LoadedStudent(Protocol):
    """A student in one of its forms, as `Task.reply` uses it."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the task."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels in the order of the outputs."""
        ...

    @property
    def model(self) -> nn.Module:
        """The model, which is called like one of transformers."""
        ...

    @property
    def batch_size(self) -> int:
        """The most texts in a batch."""
        ...

    @property
    def continuation(self) -> Continuation:
        """How texts are continued."""
        ...

    def outputs(self, columns: Any, on_progress: Progress) -> Any:
        """The `Outputs` for all answers to these texts."""
        ...

    def read_rows(
        self, encoded: Encoded, read: Callable[[Tensor], T], on_progress: Progress, at_once: int | None = None
    ) -> Sequence[T]:
        """What `read` makes of the logits at the answers of each encoded row (A x C), at most `at_once` in a batch."""
        ...


@dataclass(frozen=True)
class ClassAnswer:
    """The most probable label of a text."""

    label: str
    probability: float
    probabilities: dict[str, float]
    """Every label -> its probability."""

    def cells(self) -> list[str]:
        """The label and its probability."""
        return [self.label, f"{self.probability:.4f}"]

    def columns(self) -> dict[str, Any]:
        """The label, its probability, and the probability of every label."""
        return {PREDICTED: self.label, PROBABILITY: round(self.probability, 6)} | probability_columns(
            self.probabilities
        )


def probability_columns(probabilities: dict[str, float]) -> dict[str, float]:
    """The columns with the probability of each label."""
    return {f"{PROBABILITY}_{label}": round(probability, 6) for label, probability in probabilities.items()}
