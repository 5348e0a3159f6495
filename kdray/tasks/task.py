"""The protocol of a task: all code that loads, trains and measures a model knows a task by it only.

`kdray.data.splits` decides which files and splits are read; `kdray.evaluation` compares a student with its teacher.
Shapes: N rows, C classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedModel


class Task(Protocol):
    """The columns to read, the encoding of texts, the head of the model, and the metrics."""

    @property
    def name(self) -> str:
        """The name for tags and sentences, such as "text classification"."""
        ...

    @property
    def text(self) -> str:
        """The name of the column with the text."""
        ...

    @property
    def pair(self) -> str | None:
        """The name of the column with the second text of a pair; None for single texts."""
        ...

    @property
    def label(self) -> str:
        """The name of the column with the label."""
        ...

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The labels in the order of the model's outputs; None: the data decide the order."""
        ...

    @property
    def max_length(self) -> int:
        """The maximum number of tokens of one example."""
        ...

    @property
    def quality(self) -> str:
        """The name of the metric that retention is computed from."""
        ...

    def metric_names(self, classes: int) -> tuple[str, ...]:
        """The names of the metrics that `metrics` computes for this number of labels."""
        ...

    def encode(self, tokenizer: Any, texts: list[str], pairs: list[str] | None) -> dict[str, list[list[int]]]:
        """Input name -> one list for each text: truncated, not padded, and without the attention mask."""
        ...

    def lengths(self, tokenizer: Any, texts: list[str], pairs: list[str] | None) -> list[int]:
        """The number of tokens of each text, if it were not truncated."""
        ...

    def tokenizer(self, folder: Path) -> Any:
        """Load the tokenizer saved in this folder."""
        ...

    def model_labels(self, folder: Path) -> tuple[str, ...]:
        """The names that the model saved in this folder gives to its outputs."""
        ...

    def model(self, folder: Path, labels: Sequence[str]) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """Load the model saved in this folder, with a head for these labels.

        The second value has the names of the weights that the folder lacks and that were drawn at random.
        """
        ...

    def metrics(self, logits_NxC: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
        """Metric name -> value, for these outputs."""
        ...
