"""Task: what is asked of a model. All code that loads, trains and measures a model knows a task by this class only.

A new task is one new file with a subclass, and one line in `kinds`. `kdray.data.splits` decides which files and splits
are read; `kdray.evaluation` compares a student with its teacher.
Shapes: N examples, A answers, C outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from pydantic import Field
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from kdray.data.task_data import CheckedTable, Encoded, LabelOrder, TextColumns
from kdray.losses.distribution import Distribution
from kdray.settings import Settings
from kdray.sources.tables import Table
from kdray.tasks.answers import Answer, LoadedStudent, Progress
from kdray.tasks.counts import Counts, Metric
from kdray.tasks.heads import HEADS
from kdray.tasks.label_figures import LabelFigures
from kdray.tasks.label_order import LabelDifference
from kdray.tasks.serving import Serving

LARGEST_LOGIT_DIFFERENCE = 0.01
"""The allowed difference of a logit in a float32 graph. Rounding alone stays far below it."""


class GoldRows(Protocol):
    """The right answers of a split, such as `kdray.data.rows.Rows`."""

    @property
    def gold(self) -> np.ndarray:
        """A, or A x C: see `Rows.gold`."""
        ...

    @property
    def example_starts(self) -> np.ndarray:
        """The number of the first answer of each example, and at the end the number of all answers (N + 1)."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels in the order of the outputs."""
        ...


@dataclass(frozen=True)
class Outputs:
    """The outputs of a model for all answers of a split, and what is needed to read them."""

    logits_AxC: np.ndarray
    thresholds_C: np.ndarray | None = None
    """The probability from which on each label holds; None: the task has no thresholds."""

    @property
    def are_finite(self) -> bool:
        """Whether all outputs are numbers. Of other outputs an answer could be read, too, but it would mean nothing."""
        return bool(np.isfinite(self.logits_AxC).all())


class Task(Settings):
    """The columns to read, the encoding of texts, the head of the model, its answers, and their metrics."""

    head: ClassVar[str] = "ForSequenceClassification"
    """The head of transformers that answers, a key of `HEADS`."""
    problem_type: ClassVar[str | None] = None
    """What transformers calls the task of this head, where it can have several."""
    pipeline: ClassVar[str] = "text-classification"
    """The pipeline of transformers for this task."""
    has_one_answer: ClassVar[bool] = False
    """Whether an example has one answer that is right or wrong; then McNemar's test compares two models."""
    answers_each_word: ClassVar[bool] = False
    """Whether a text is a list of words, each of which has an answer."""
    is_causal: ClassVar[bool] = False
    """Whether a model reads a text in one direction, and so needs an architecture that does."""
    length_setting: ClassVar[str] = "task.max_length"
    """The setting that says how many tokens a model reads at once: `max_length`, or what it is made of."""
    averages_teachers: ClassVar[bool] = True
    """Whether the mean of the outputs of several models can teach."""
    refused: ClassVar[Mapping[str, str]] = {}
    """Settings of a sweep that have no meaning for this task, by their dotted names -> why, and what to do instead, as
    the end of a sentence. A setting of a sweep may only have its default then; one of the task is not there."""
    agreement_meaning: ClassVar[str] = "the share of rows with the same predicted label"
    """What `agreement` is, for a sentence."""
    comparability: ClassVar[str] = ""
    """A sentence about what the quality depends on besides the rows; empty: on nothing."""
    control_name: ClassVar[str] = "labels only"
    """What a table calls a student that is trained without the teacher."""
    without_teacher: ClassVar[str] = "on labels only"
    """How such a student is trained, for a sentence."""

    kind: str
    """Which task this is; `KINDS` has all of them."""
    text: str = Field("text", min_length=1)
    """The name of the column with the text."""
    pair: str | None = None
    """The name of the column with the second text, for pairs of texts."""
    max_length: int = Field(128, ge=4)
    """The maximum number of tokens of one example; longer texts are truncated."""

    @property
    def name(self) -> str:
        """The name for tags and sentences, such as "text classification"."""
        raise NotImplementedError

    @property
    def cache_key(self) -> tuple[Any, ...]:
        """What token ids of this task depend on, besides rows, tokenizer and `max_length`."""
        return (self.name,)

    @property
    def model_key(self) -> tuple[Any, ...]:
        """What imported models of this task depend on, besides their weights, labels and seed."""
        return (self.name,)

    # Data: see `kdray.data.task_data.TaskData`

    def read(
        self, table: Table, class_names: Sequence[str] | None, may_lack_gold: bool, may_be_empty: bool = False
    ) -> CheckedTable:
        """See `TaskData`."""
        raise NotImplementedError

    @property
    def gold_columns(self) -> tuple[str, ...]:
        """The names of the columns with the gold."""
        raise NotImplementedError

    def read_texts_only(self, table: Table, names: Mapping[str, str]) -> CheckedTable:
        """See `TaskData`."""
        gold = {*self.gold_columns, *(table.aliases.get(name, name) for name in self.gold_columns)}
        columns = {name: cells for name, cells in table.columns.items() if name not in gold}
        aliases = {name: column for name, column in table.aliases.items() if column not in gold}
        without_gold = replace(table, columns=columns, aliases=aliases)
        return self.model_copy(update=dict(names)).read(without_gold, None, True)

    def class_names(self, table: Table) -> tuple[str, ...] | None:
        """See `TaskData`."""
        raise NotImplementedError

    def order_labels(self, train: Sequence[CheckedTable], class_names: Sequence[str] | None) -> LabelOrder:
        """See `TaskData`."""
        raise NotImplementedError

    def describe_gold(
        self, parts: Sequence[CheckedTable], train: Sequence[CheckedTable], order: LabelOrder
    ) -> Sequence[str]:
        """See `TaskData`."""
        return ()

    def encode(self, tokenizer: Any, columns: TextColumns, for_training: bool = False) -> Encoded:
        """See `TaskData`."""
        raise NotImplementedError

    def layout(self, tokenizer: Any) -> dict[str, Any]:
        """See `TaskData`."""
        return {}

    def lengths(self, tokenizer: Any, columns: TextColumns) -> list[int]:
        """See `TaskData`."""
        raise NotImplementedError

    def describe_division(self, split: str, parts_N: np.ndarray, tokens_N: np.ndarray) -> str | None:
        """See `TaskData`."""
        if not (divided := int((parts_N > 1).sum())):
            return None
        return (
            f"{split}: {divided:,} of {len(parts_N):,} texts are longer than {self.max_length} tokens "
            "(task.max_length) and are read in overlapping parts; every word is answered once."
        )

    # Models

    def tokenizer(self, folder: Path) -> Any:
        """Load the tokenizer saved in this folder."""
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def model_labels(self, folder: Path) -> tuple[str, ...]:
        """The label names in the config in this folder, in the order of the outputs; LABEL_0, ... if it has none."""
        names = AutoConfig.from_pretrained(folder, trust_remote_code=False).id2label
        return tuple(str(names[output]) for output in sorted(names))

    def label_difference(self, outputs: Sequence[str], labels: Sequence[str]) -> LabelDifference | None:
        """How a model with the labels `outputs` differs from these labels; None if only in their names and order."""
        return None

    def head_settings(self, labels: Sequence[str]) -> dict[str, Any]:
        """The settings of a configuration of transformers for a head with these labels."""
        names = {"id2label": dict(enumerate(labels)), "label2id": {name: number for number, name in enumerate(labels)}}
        return names if self.problem_type is None else {**names, "problem_type": self.problem_type}

    def fresh_model(self, config: PreTrainedConfig) -> PreTrainedModel:
        """A model of this configuration with the head of the task; all weights are drawn."""
        model: PreTrainedModel = HEADS[self.head].from_config(config, trust_remote_code=False)
        return model

    def model(self, folder: Path, labels: Sequence[str]) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """Load the model in float32, with the head of the task and these labels in its config.

        The second value has the names of the weights that were drawn at random. A head that is missing, or that has
        another number of outputs, is drawn with torch's global random generator.
        """
        model, loading_info = HEADS[self.head].from_pretrained(
            folder,
            **self.head_settings(labels),
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
        # A mismatched key is a name, or a tuple of the name and the two shapes: it depends on the version.
        mismatched = [key if isinstance(key, str) else key[0] for key in loading_info["mismatched_keys"]]
        return model, tuple(sorted({*loading_info["missing_keys"], *mismatched}))

    # Answers and metrics

    @property
    def quality(self) -> Metric:
        """The metric that retention is computed from, and that decides where no other is named."""
        raise NotImplementedError

    def metrics(self, labels: Sequence[str] | None) -> tuple[Metric, ...]:
        """The metrics of models with these labels; None: the metrics with any labels."""
        raise NotImplementedError

    def distribution(self, gold: np.ndarray) -> Distribution:
        """What the outputs mean; `gold` is that of the training rows."""
        raise NotImplementedError

    def choose_thresholds(self, logits_AxC: np.ndarray, rows: GoldRows) -> np.ndarray | None:
        """The best thresholds for these outputs of the validation rows (C); None for a task without thresholds."""
        return None

    def counts(self, outputs: Outputs, rows: GoldRows) -> Counts:
        """The counts of each example, with the metrics that are functions of them."""
        raise NotImplementedError

    def values_without_counts(self, outputs: Outputs, rows: GoldRows) -> dict[str, float]:
        """Name -> value of the metrics that are no functions of counts."""
        return {}

    def agreement(self, student: Outputs, teacher: Outputs) -> float:
        """How far two models give the same answers: 1 if all are the same."""
        raise NotImplementedError

    def right(self, outputs: Outputs, rows: GoldRows) -> np.ndarray:
        """Whether the answer of each example is right (N, bool). Only for a task that `has_one_answer`."""
        raise NotImplementedError

    def chance(self, rows: GoldRows) -> float:
        """The quality of the best answers that do not depend on the text."""
        raise NotImplementedError

    def required_quality(self, chance: float, above_chance: float) -> float:
        """The quality that a teacher must reach, if that of answers which do not depend on the text is `chance`."""
        # If nearly all rows have one label, chance + above_chance may be out of reach, even above 1.
        return chance + min(above_chance, (1 - chance) / 2)

    def exchanged_outputs(self, outputs: Outputs, rows: GoldRows) -> tuple[float, list[int]] | None:
        """The order of the outputs with the best quality: that quality, and the label of each output.

        None for a task whose outputs cannot be exchanged without being noticed otherwise.
        """
        return None

    def other_units(self, outputs: Outputs, rows: GoldRows) -> str | None:
        """That a model answers in other units than those of the data, as a part of a sentence; None if it does not.

        Its quality need not show it, but a student could not learn from its answers and the gold together.
        """
        return None

    def answers(self, outputs: Outputs, columns: TextColumns, labels: Sequence[str]) -> Sequence[Answer]:
        """The answer for each text: `outputs` are those of the answers to these texts, in `TextColumns`."""
        raise NotImplementedError

    def reply(self, student: LoadedStudent, columns: TextColumns, on_progress: Progress) -> Sequence[Answer]:
        """The answer of a student for each text; `on_progress` receives the complete share of them."""
        return self.answers(student.outputs(columns, on_progress), columns, student.labels)

    def answer_columns(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The names of the columns of `Answer.columns`; the first one is `PREDICTED`."""
        raise NotImplementedError

    def columns_of(self, texts: Sequence[str], pairs: Sequence[str] | None) -> TextColumns:
        """The columns that `encode` reads, of texts to predict."""
        return {"text": texts} if pairs is None else {"text": texts, "pair": pairs}

    def texts_to_predict(self, table: Table) -> tuple[list[Any], list[str] | None]:
        """The texts of a file, for `columns_of`, and the second texts of pairs; `table` has these columns.

        Raises DataError, with file, row and column, for a cell that is no text.
        """
        raise NotImplementedError

    # What is published with a model

    def predicts(self, labels: Sequence[str]) -> str:
        """What a model predicts, as the end of a sentence: "one of 2 labels: negative, positive"."""
        raise NotImplementedError

    @property
    def counted(self) -> str:
        """What `LabelFigures.count` counts: "rows"."""
        return "rows"

    def label_figures(self, outputs: Outputs, rows: GoldRows) -> dict[str, LabelFigures] | None:
        """Label, or type of spans -> its figures; None for a task without labels. All outputs must be finite."""
        return None

    def pytorch_code(self, labels: Sequence[str]) -> str:
        """Python code that predicts an example with plain transformers, in the folder of the model."""
        raise NotImplementedError

    def onnx_code(self, file: str) -> str:
        """Python code that predicts an example with the ONNX graph in this file, in the folder of the model."""
        raise NotImplementedError

    def compared_numbers(self, outputs: Outputs) -> np.ndarray:
        """The numbers of these outputs that another computation of the same outputs gives, too, but for rounding."""
        return outputs.logits_AxC

    def allowed_difference(self, outputs: Outputs) -> float:
        """The largest difference of an output from these that rounding in float32 may explain."""
        return LARGEST_LOGIT_DIFFERENCE

    def serving(self, labels: Sequence[str]) -> Serving:
        """How MLflow's pyfunc answers for a model."""
        raise NotImplementedError

    # For all tasks

    def outputs(self, logits_AxC: np.ndarray, validation: GoldRows) -> Outputs:
        """The outputs of a model for the validation rows, with the thresholds that are best there."""
        return Outputs(logits_AxC, self.choose_thresholds(logits_AxC, validation))

    def metric_names(self, labels: Sequence[str] | None) -> tuple[str, ...]:
        """The names of `metrics`."""
        return tuple(metric.name for metric in self.metrics(labels))

    def values(self, outputs: Outputs, rows: GoldRows) -> dict[str, float]:
        """Metric name -> value; all values are nan if an output is not finite."""
        names = self.metric_names(rows.labels)
        if not outputs.are_finite:
            return dict.fromkeys(names, float("nan"))
        values = self.counts(outputs, rows).values() | self.values_without_counts(outputs, rows)
        return {name: values[name] for name in names}
