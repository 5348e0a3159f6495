"""Text classification: one label for a sentence, or for a pair of sentences.

Leaves loading the rows and giving each label its number to `kdray.data.splits`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from kdray.errors import SpecError
from kdray.settings import Names, Settings


class TextClassification(Settings):
    """Which columns to read, and how much of a text to look at."""

    text: str = Field("text", min_length=1)
    """The column that holds the text."""
    pair: str | None = None
    """The column that holds the second text, for sentence pairs."""
    label: str = Field("label", min_length=1)
    """The column that holds the label, a name or a whole number."""
    labels: Names | None = None
    """The labels in the order of the model's outputs; for data with the numbers 0, 1, ... their names.
    None: the order in the dataset's own features, else sorted (by value where all are whole numbers)."""
    max_length: int = Field(128, ge=4)
    """The most tokens of one example; what is longer is cut off."""

    @property
    def name(self) -> str:
        """For tags and sentences."""
        return "text classification"

    @property
    def quality(self) -> str:
        """The metric that retention is a ratio of."""
        return "accuracy"

    @model_validator(mode="after")
    def _checked(self) -> Self:
        columns = [self.text, self.label, *([self.pair] if self.pair else [])]
        if len(set(columns)) < len(columns):
            raise ValueError(f"text, pair and label must be different columns, got {', '.join(columns)}.")
        if self.labels is not None and len(set(self.labels)) < max(2, len(self.labels)):
            raise ValueError(f"labels must be at least two different names, got {', '.join(self.labels)}.")
        return self

    def metric_names(self, classes: int) -> tuple[str, ...]:
        """Accuracy, macro F1, and Matthews' correlation coefficient for two classes."""
        return ("accuracy", "macro_f1", "mcc") if classes == 2 else ("accuracy", "macro_f1")

    def encode(self, tokenizer: Any, texts: list[str], pairs: list[str] | None) -> dict[str, list[list[int]]]:
        """The tokenizer's own model inputs, truncated to `max_length`. Raises SpecError if that is too long for it."""
        if self.max_length > tokenizer.model_max_length:
            raise SpecError(
                f"task.max_length: got {self.max_length}; this model takes at most {tokenizer.model_max_length} tokens."
            )
        encoded = tokenizer(
            texts,
            pairs,
            truncation=True,
            max_length=self.max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids="token_type_ids" in tokenizer.model_input_names,
        )
        return {name: encoded[name] for name in encoded if name in tokenizer.model_input_names}

    def tokenizer(self, folder: Path) -> Any:
        """The tokenizer saved in this folder."""
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def model_labels(self, folder: Path) -> tuple[str, ...]:
        """The names in the config saved in this folder, in the order of the outputs; LABEL_0, ... where it has none."""
        names = AutoConfig.from_pretrained(folder, trust_remote_code=False).id2label
        return tuple(str(names[output]) for output in sorted(names))

    def model(self, folder: Path, labels: Sequence[str]) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """The model in float32 with these labels in its config, and the names of the weights that were drawn anew.

        A head that is missing, or made for another number of labels, is drawn from torch's global generator.
        """
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder,
            id2label=dict(enumerate(labels)),
            label2id={name: number for number, name in enumerate(labels)},
            problem_type="single_label_classification",
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
        mismatched = [key if isinstance(key, str) else key[0] for key in loading["mismatched_keys"]]
        return model, tuple(sorted({*loading["missing_keys"], *mismatched}))

    def metrics(self, logits_NxC: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
        """The metrics by name; all of them nan when an output is not finite, for then no answer means anything."""
        names = self.metric_names(logits_NxC.shape[1])
        if not np.isfinite(logits_NxC).all():
            return dict.fromkeys(names, float("nan"))
        answers_N = logits_NxC.argmax(axis=1)
        values = {
            "accuracy": accuracy_score(labels_N, answers_N),
            "macro_f1": f1_score(labels_N, answers_N, average="macro", zero_division=0.0),
        }
        if "mcc" in names:
            values["mcc"] = matthews_corrcoef(labels_N, answers_N)
        return {name: float(values[name]) for name in names}
