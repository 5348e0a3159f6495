"""What a task is: the seam between one kind of labelled text and everything that loads, trains and measures.

Which files and splits there are is `kdray.data.splits`'s business; what is compared with the teacher is `evaluation`'s.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedModel


class Task(Protocol):
    """The columns to read, how text becomes model inputs, the head, and the measures of quality."""

    @property
    def name(self) -> str:
        """For tags and sentences, such as "text classification"."""
        ...

    @property
    def text(self) -> str:
        """The column that holds the text."""
        ...

    @property
    def pair(self) -> str | None:
        """The column that holds the second text of a pair."""
        ...

    @property
    def label(self) -> str:
        """The column that holds the label."""
        ...

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The labels in the order of the model's outputs; None: as the data say."""
        ...

    @property
    def max_length(self) -> int:
        """The most tokens of one example."""
        ...

    @property
    def quality(self) -> str:
        """The name of the metric that says how good a model is: what retention is a ratio of."""
        ...

    def metric_names(self, classes: int) -> tuple[str, ...]:
        """The names of what `metrics` measures with so many labels."""
        ...

    def encode(self, tokenizer: Any, texts: list[str], pairs: list[str] | None) -> dict[str, list[list[int]]]:
        """The model's inputs by name, truncated, not padded, without the attention mask."""
        ...

    def tokenizer(self, folder: Path) -> Any:
        """The tokenizer saved in this folder."""
        ...

    def model_labels(self, folder: Path) -> tuple[str, ...]:
        """The names that the model saved in this folder gives to its outputs."""
        ...

    def model(self, folder: Path, labels: Sequence[str]) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """The model saved in this folder with a head for these labels, and which of its weights were drawn anew."""
        ...

    def metrics(self, logits_NxC: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
        """The quality of these outputs."""
        ...
