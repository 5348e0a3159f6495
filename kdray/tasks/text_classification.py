"""Text classification: one label for a text, or for a pair of texts.

`kdray.data.splits` loads the rows and decides the number of each label. Shapes: N rows, C classes.
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
    """The columns to read, the labels, and the maximum length of a text."""

    text: str = Field("text", min_length=1)
    """The name of the column with the text."""
    pair: str | None = None
    """The name of the column with the second text, for pairs of texts."""
    label: str = Field("label", min_length=1)
    """The name of the column with the label, a name or a whole number."""
    labels: Names | None = None
    """The labels in the order of the model's outputs; for data with the numbers 0, 1, ..., the names of these numbers.
    None: the order in the dataset's own features, otherwise sorted (by value if all labels are whole numbers)."""
    max_length: int = Field(128, ge=4)
    """The maximum number of tokens of one example; longer texts are truncated."""

    @property
    def name(self) -> str:
        """The name for tags and sentences."""
        return "text classification"

    @property
    def quality(self) -> str:
        """The name of the metric that retention is computed from."""
        return "accuracy"

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        columns = [self.text, self.label, *([self.pair] if self.pair else [])]
        if len(set(columns)) < len(columns):
            raise ValueError(f"text, pair and label must be different columns, got {', '.join(columns)}.")
        if self.labels is not None and len(set(self.labels)) < max(2, len(self.labels)):
            raise ValueError(f"labels must be at least two different names, got {', '.join(self.labels)}.")
        return self

    def metric_names(self, classes: int) -> tuple[str, ...]:
        """The names of accuracy and macro F1, and for two classes also Matthews' correlation coefficient."""
        return ("accuracy", "macro_f1", "mcc") if classes == 2 else ("accuracy", "macro_f1")

    def encode(self, tokenizer: Any, texts: list[str], pairs: list[str] | None) -> dict[str, list[list[int]]]:
        """Tokenise the texts, truncated to `max_length`: input name -> one list of ids for each text.

        Raises SpecError if `max_length` is greater than the maximum length of the tokenizer.
        """
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
            # Rows derives the mask from the length of each row.
            return_attention_mask=False,
            # Without token types, a model such as BERT cannot tell the two texts of a pair apart.
            return_token_type_ids="token_type_ids" in tokenizer.model_input_names,
        )
        return {name: encoded[name] for name in encoded if name in tokenizer.model_input_names}

    def lengths(self, tokenizer: Any, texts: list[str], pairs: list[str] | None) -> list[int]:
        """The number of tokens of each text, with the special tokens, if it were not truncated."""
        # A tokenizer warns about texts that are longer than its model can read, which is what is asked here.
        encoded = tokenizer(texts, pairs, truncation=False, padding=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def tokenizer(self, folder: Path) -> Any:
        """Load the tokenizer saved in this folder."""
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def model_labels(self, folder: Path) -> tuple[str, ...]:
        """The label names in the config in this folder, in the order of the outputs; LABEL_0, ... if it has none."""
        names = AutoConfig.from_pretrained(folder, trust_remote_code=False).id2label
        return tuple(str(names[output]) for output in sorted(names))

    def model(self, folder: Path, labels: Sequence[str]) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """Load the model in float32, with these labels in its config.

        The second value has the names of the weights that were drawn at random. A head that is missing, or that has
        another number of outputs, is drawn with torch's global random generator.
        """
        model, loading_info = AutoModelForSequenceClassification.from_pretrained(
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
        # A mismatched key is a name, or a tuple of the name and the two shapes: it depends on the version.
        mismatched = [key if isinstance(key, str) else key[0] for key in loading_info["mismatched_keys"]]
        return model, tuple(sorted({*loading_info["missing_keys"], *mismatched}))

    def metrics(self, logits_NxC: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
        """Metric name -> value; all values are nan if an output is not finite.

        argmax would return a class for such outputs, too, and the accuracy would look like that of a bad model.
        """
        names = self.metric_names(logits_NxC.shape[1])
        if not np.isfinite(logits_NxC).all():
            return dict.fromkeys(names, float("nan"))
        predictions_N = logits_NxC.argmax(axis=1)
        values = {
            "accuracy": accuracy_score(labels_N, predictions_N),
            "macro_f1": f1_score(labels_N, predictions_N, average="macro", zero_division=0.0),
        }
        if "mcc" in names:
            values["mcc"] = matthews_corrcoef(labels_N, predictions_N)
        return {name: float(values[name]) for name in names}
