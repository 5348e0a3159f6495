"""What a model answers, for people: a line on a screen, and the columns that a file with predictions gets.

Each task has an answer of its own; `kdray.export.prediction` prints and writes them.
"""

from dataclasses import dataclass
from typing import Any, Protocol

PREDICTED, PROBABILITY = "predicted", "probability"
"""Names of the columns with the answer, and with its probability."""


class Answer(Protocol):
    """The answer for one text."""

    def cells(self) -> list[str]:
        """The answer as cells of a line, such as the label and its probability."""
        ...

    def columns(self) -> dict[str, Any]:
        """Name of a column in a file -> the value in the row of this text; the same names for every answer."""
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
