"""Text classification: one label for a text, or for a pair of texts.

Shapes: N rows, C classes.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import confusion_matrix

from kdray.data.cells import label_column
from kdray.data.task_data import CheckedTable, LabelOrder, TextColumns
from kdray.losses.softmax import SOFTMAX, Softmax
from kdray.settings import Names
from kdray.sources.tables import Table
from kdray.tasks.answers import PREDICTED, PROBABILITY, ClassAnswer, probability_columns
from kdray.tasks.confusion import class_f1, confusion_counts
from kdray.tasks.counts import Counts, Metric
from kdray.tasks.label_figures import LabelFigures, label_figures
from kdray.tasks.label_order import order_names
from kdray.tasks.serving import Serving
from kdray.tasks.task import GoldRows, Outputs
from kdray.tasks.texts import TextTask, check_columns
from kdray.tasks.usage import classifier_code, onnx_classifier_code

ACCURACY, MACRO_F1 = Metric("accuracy", hub="accuracy"), Metric("macro_f1", hub="f1")
MCC = Metric("mcc", heading="MCC", hub="matthews_correlation")
_SHOW_CLASS = (
    "probabilities = model(**inputs).logits.softmax(dim=-1)",
    "print([(model.config.id2label[int(row.argmax())], round(float(row.max()), 4)) for row in probabilities])",
)
_SHOW_LOGITS = ('print(session.run(["logits"], inputs)[0][0].tolist())',)


class TextClassification(TextTask):
    """The columns to read, the labels, and the maximum length of a text."""

    kind: Literal["text_classification"] = Field("text_classification", exclude=True)
    """Not written: sweeps that were started when there was no other task have settings without a kind."""
    label: str = Field("label", min_length=1)
    """The name of the column with the label, a name or a whole number."""
    labels: Names | None = None
    """The labels in the order of the model's outputs; for data with the numbers 0, 1, ..., the names of these numbers.
    None: the order in the dataset's own features, otherwise sorted (by value if all labels are whole numbers)."""

    problem_type: ClassVar[str | None] = "single_label_classification"
    has_one_answer: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """See `Task`."""
        return "text classification"

    @property
    def model_key(self) -> tuple[Any, ...]:
        """Nothing more: models that were imported when there was no other task are found again."""
        return ()

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        check_columns(text=self.text, pair=self.pair, label=self.label)
        if self.labels is not None and len(set(self.labels)) < max(2, len(self.labels)):
            raise ValueError(f"labels must be at least two different names, got {', '.join(self.labels)}.")
        return self

    def read(
        self, table: Table, class_names: Sequence[str] | None, may_lack_gold: bool, may_be_empty: bool = False
    ) -> CheckedTable:
        """See `TaskData`."""
        texts = self.read_texts(table)
        gold = None
        if not may_lack_gold or table.column(self.label) is not None:
            names = table.class_names.get(self.label, class_names)
            gold = label_column(table, self.label, names, may_be_empty)
        return CheckedTable(where=table.where, gold=gold, **texts)

    @property
    def gold_columns(self) -> tuple[str, ...]:
        """See `Task`."""
        return (self.label,)

    def class_names(self, table: Table) -> tuple[str, ...] | None:
        """See `TaskData`."""
        return table.class_names.get(self.label)

    def order_labels(self, train: Sequence[CheckedTable], class_names: Sequence[str] | None) -> LabelOrder:
        """See `TaskData`."""
        return order_names((name for part in train if part.gold for name in part.gold.names), self.labels, class_names)

    @property
    def quality(self) -> Metric:
        """Accuracy."""
        return ACCURACY

    def metrics(self, labels: Sequence[str] | None) -> tuple[Metric, ...]:
        """Accuracy and macro F1, and for two labels also Matthews' correlation coefficient."""
        return (ACCURACY, MACRO_F1, MCC) if labels is None or len(labels) == 2 else (ACCURACY, MACRO_F1)

    def distribution(self, gold: np.ndarray) -> Softmax:
        """See `Task`."""
        return SOFTMAX

    def counts(self, outputs: Outputs, rows: GoldRows) -> Counts:
        """See `Task`."""
        answers_N, classes = outputs.logits_AxC.argmax(axis=1), outputs.logits_AxC.shape[1]
        return confusion_counts(answers_N, rows.gold, classes, self.metric_names(rows.labels))

    def agreement(self, student: Outputs, teacher: Outputs) -> float:
        """The share of rows with the same class."""
        return float(np.mean(student.logits_AxC.argmax(axis=1) == teacher.logits_AxC.argmax(axis=1)))

    def right(self, outputs: Outputs, rows: GoldRows) -> np.ndarray:
        """See `Task`."""
        return outputs.logits_AxC.argmax(axis=1) == rows.gold

    def answers(self, outputs: Outputs, columns: TextColumns, labels: Sequence[str]) -> list[ClassAnswer]:
        """The most probable label of each text."""
        probabilities_NxC = torch.softmax(torch.from_numpy(outputs.logits_AxC), dim=-1).numpy()
        return [
            ClassAnswer(labels[int(row_C.argmax())], float(row_C.max()), dict(zip(labels, row_C.tolist(), strict=True)))
            for row_C in probabilities_NxC
        ]

    def answer_columns(self, labels: Sequence[str]) -> tuple[str, ...]:
        """See `Task`."""
        return (PREDICTED, PROBABILITY, *probability_columns(dict.fromkeys(labels, 0.0)))

    def predicts(self, labels: Sequence[str]) -> str:
        """See `Task`."""
        return f"one of {len(labels)} labels: {', '.join(labels)}"

    def label_figures(self, outputs: Outputs, rows: GoldRows) -> dict[str, LabelFigures]:
        """See `Task`."""
        confusion_CxC = self.counts(outputs, rows).sums().reshape(len(rows.labels), len(rows.labels))
        return label_figures(rows.labels, class_f1(confusion_CxC), confusion_CxC.sum(axis=1))

    def pytorch_code(self, labels: Sequence[str]) -> str:
        """See `Task`."""
        return classifier_code(self.max_length, self.pair is not None, _SHOW_CLASS)

    def onnx_code(self, file: str) -> str:
        """See `Task`."""
        return onnx_classifier_code(file, self.max_length, self.pair is not None, _SHOW_LOGITS)

    def serving(self, labels: Sequence[str]) -> Serving:
        """See `Task`."""
        return Serving({"label": "string", "score": "double"}, {"answers": "label"}, has_pipeline=True)

    def chance(self, rows: GoldRows) -> float:
        """The share of the most frequent label."""
        return float(np.bincount(rows.gold).max() / len(rows.gold))

    def exchanged_outputs(self, outputs: Outputs, rows: GoldRows) -> tuple[float, list[int]] | None:
        """See `Task`. The best order is an assignment problem on the confusion matrix."""
        classes = outputs.logits_AxC.shape[1]
        confusion_CxC = confusion_matrix(rows.gold, outputs.logits_AxC.argmax(axis=1), labels=range(classes))
        label_of_output_C = linear_sum_assignment(confusion_CxC.T, maximize=True)[1]
        best = float(confusion_CxC.T[np.arange(classes), label_of_output_C].sum() / len(rows.gold))
        return best, label_of_output_C.tolist()
