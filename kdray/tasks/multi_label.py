"""Several labels: any number of labels for a text, or for a pair of texts, also none.

A label is given where its probability reaches its threshold. The thresholds are chosen on the validation rows.
Shapes: N rows, C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, model_validator
from scipy.special import expit

from kdray.data.gold import SeveralLabels
from kdray.data.indicator_cells import indicated_labels, indicator_columns
from kdray.data.label_lists import label_lists
from kdray.data.separated_cells import separated_column
from kdray.data.task_data import CheckedTable, LabelOrder, TextColumns
from kdray.errors import DataError
from kdray.losses.sigmoid import Sigmoid
from kdray.settings import Names
from kdray.sources.tables import Table
from kdray.tasks.answers import PREDICTED, probability_columns
from kdray.tasks.counts import Counts, Metric
from kdray.tasks.label_figures import LabelFigures, label_figures
from kdray.tasks.label_order import order_names
from kdray.tasks.label_sets import (
    LABEL_SET_METRICS,
    average_precision,
    label_f1,
    label_set_counts,
    label_support,
    same_set_share,
)
from kdray.tasks.serving import Serving
from kdray.tasks.task import GoldRows, Outputs
from kdray.tasks.texts import TextTask, check_columns
from kdray.tasks.thresholds import common_threshold, label_thresholds, threshold_margins
from kdray.tasks.usage import classifier_code, onnx_classifier_code

MICRO_F1, MACRO_F1 = Metric("micro_f1", hub="f1"), Metric("macro_f1", hub="f1")
SUBSET_ACCURACY, AVERAGE_PRECISION = Metric("subset_accuracy", hub="accuracy"), Metric("average_precision")
_SHOW_LABELS = (
    "probabilities = model(**inputs).logits.sigmoid()",
    "names, thresholds = model.config.id2label, model.config.thresholds",
    "for row in probabilities.tolist():",
    "    print({names[n]: round(p, 4) for n, p in enumerate(row) if p > thresholds[n]})",
)
_SHOW_LABELS_OF_LOGITS = (
    'config = json.load(open("config.json"))',
    'probabilities = 1 / (1 + np.exp(-session.run(["logits"], inputs)[0][0].astype(float)))',
    'names, thresholds = config["id2label"], config["thresholds"]',
    "print({names[str(n)]: round(p, 4) for n, p in enumerate(probabilities.tolist()) if p > thresholds[n]})",
)


@dataclass(frozen=True)
class SetAnswer:
    """The labels of a text."""

    labels: tuple[str, ...]
    probabilities: dict[str, float]
    """Every label -> its probability."""

    def cells(self) -> list[str]:
        """Each label that is given with its probability, the most probable first."""
        given = sorted(self.labels, key=lambda label: -self.probabilities[label])
        return [", ".join(f"{label} {self.probabilities[label]:.4f}" for label in given)]

    def columns(self) -> dict[str, Any]:
        """The labels that are given, separated by commas, and the probability of every label."""
        return {PREDICTED: ",".join(self.labels)} | probability_columns(self.probabilities)


def _split_list(value: Any) -> Any:
    """The names in the text `[a,b,c]` of a command line."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        return tuple(name.strip() for name in value[1:-1].split(","))
    return value


class MultiLabel(TextTask):
    """The columns to read, the labels, their thresholds, and the maximum length of a text."""

    kind: Literal["multi_label"] = "multi_label"
    label: Annotated[str | tuple[str, ...], BeforeValidator(_split_list)] = Field("label", min_length=1)
    """The name of the column with the labels of a row: a list, or a text with a separator; or the names of several
    columns, one for each label, with 1 where it holds and 0 where not."""
    separator: str | None = Field(None, min_length=1)
    """What stands between the labels in a cell, such as a comma; None: the cells hold lists."""
    labels: Names | None = None
    """The labels in the order of the model's outputs; for data with the numbers 0, 1, ..., the names of these numbers.
    None: the order of the columns, or that in the dataset's own features, otherwise sorted."""
    thresholds: Literal["each", "one"] = "each"
    """Whether each label has a threshold of its own, or all have one."""

    problem_type: ClassVar[str | None] = "multi_label_classification"
    agreement_meaning: ClassVar[str] = "the share of rows with exactly the same predicted labels"

    @property
    def name(self) -> str:
        """See `Task`."""
        return "multi-label classification"

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        check_columns(text=self.text, pair=self.pair, label=self.label)
        if self.labels is not None and len(set(self.labels)) < max(2, len(self.labels)):
            raise ValueError(f"labels must be at least two different names, got {', '.join(self.labels)}.")
        if not isinstance(self.label, str) and len(self.label) < 2:
            raise ValueError(
                f"MultiLabel.label: got one column, {self.label[0]!r}. Give one column for each label, such as [a,b]; "
                "a single label of 0 and 1 is a text classification (task.kind)."
            )
        if not isinstance(self.label, str) and (self.separator or self.labels):
            raise ValueError(
                "MultiLabel.label: the names of its columns are the labels. Leave out separator and labels, or name "
                "one column."
            )
        return self

    def read(
        self, table: Table, class_names: Sequence[str] | None, may_lack_gold: bool, may_be_empty: bool = False
    ) -> CheckedTable:
        """See `TaskData`. Raises DataError for a separator that no cell has, too."""
        texts = self.read_texts(table)
        first = self.label if isinstance(self.label, str) else self.label[0]
        if may_lack_gold and table.column(first) is None:
            return CheckedTable(where=table.where, gold=None, **texts)
        gold, notes = self._read_labels(table, class_names)
        return CheckedTable(where=table.where, gold=replace(gold, is_set=True), notes=notes, **texts)

    def _read_labels(self, table: Table, class_names: Sequence[str] | None) -> tuple[SeveralLabels, tuple[str, ...]]:
        if not isinstance(self.label, str):
            return indicated_labels(indicator_columns(table, self.label, "task.label"), self.label), ()
        if self.separator is None:
            return label_lists(table, self.label, self.class_names(table) or class_names), ()
        column = separated_column(table, self.label, self.separator, "task.label")
        if not column.has_separator and len(column.labels.codes):
            raise DataError(
                f"{table.where}, column {self.label!r}: no cell has the separator {self.separator!r} "
                f"(task.separator), so no row has several labels. Correct the separator; rows with one label each are "
                "a text classification (task.kind)."
            )
        return column.labels, column.notes

    @property
    def gold_columns(self) -> tuple[str, ...]:
        """See `Task`."""
        return (self.label,) if isinstance(self.label, str) else self.label

    def class_names(self, table: Table) -> tuple[str, ...] | None:
        """See `TaskData`."""
        return table.class_names.get(self.label) if isinstance(self.label, str) else None

    def order_labels(self, train: Sequence[CheckedTable], class_names: Sequence[str] | None) -> LabelOrder:
        """See `TaskData`. Raises DataError for fewer than two labels."""
        given = self.labels if isinstance(self.label, str) else self.label
        order = order_names((name for part in train if part.gold for name in part.gold.names), given, class_names)
        if len(order.labels) < 2:
            found = f"{order.labels[0]!r} is the only label" if order.labels else "no row has a label"
            raise DataError(
                f"{train[0].where}: {found}; at least two are needed. Check the label column (task.label); a "
                "label that is given or not is a text classification (task.kind)."
            )
        return order

    @property
    def quality(self) -> Metric:
        """Macro F1: every label counts as much as any other."""
        return MACRO_F1

    def metrics(self, labels: Sequence[str] | None) -> tuple[Metric, ...]:
        """Macro and micro F1, the share of rows with exactly the right labels, and average precision."""
        return (MACRO_F1, MICRO_F1, SUBSET_ACCURACY, AVERAGE_PRECISION)

    def distribution(self, gold: np.ndarray) -> Sigmoid:
        """See `Task`."""
        return Sigmoid.of(gold)

    def choose_thresholds(self, logits_AxC: np.ndarray, rows: GoldRows) -> np.ndarray | None:
        """See `Task`."""
        known = rows.gold[:, 0] >= 0
        choose = common_threshold if self.thresholds == "one" else label_thresholds
        return choose(logits_AxC[known], rows.gold[known])

    def counts(self, outputs: Outputs, rows: GoldRows) -> Counts:
        """See `Task`."""
        return Counts(label_set_counts(_margins(outputs), rows.gold), LABEL_SET_METRICS)

    def values_without_counts(self, outputs: Outputs, rows: GoldRows) -> dict[str, float]:
        """Average precision, which needs the order of all rows."""
        known = rows.gold[:, 0] >= 0
        return {AVERAGE_PRECISION.name: average_precision(outputs.logits_AxC[known], rows.gold[known])}

    def agreement(self, student: Outputs, teacher: Outputs) -> float:
        """The share of rows with the same labels."""
        return same_set_share(_margins(student), _margins(teacher))

    def predicts(self, labels: Sequence[str]) -> str:
        """See `Task`."""
        return f"any number of {len(labels)} labels, also none: {', '.join(labels)}"

    def label_figures(self, outputs: Outputs, rows: GoldRows) -> dict[str, LabelFigures]:
        """See `Task`."""
        sums_K = self.counts(outputs, rows).sums()
        f1_C = np.array([label_f1(sums_K, label) for label in range(len(rows.labels))])
        return label_figures(rows.labels, f1_C, label_support(sums_K))

    def pytorch_code(self, labels: Sequence[str]) -> str:
        """See `Task`."""
        return classifier_code(self.max_length, self.pair is not None, _SHOW_LABELS)

    def onnx_code(self, file: str) -> str:
        """See `Task`."""
        return onnx_classifier_code(file, self.max_length, self.pair is not None, _SHOW_LABELS_OF_LOGITS)

    def serving(self, labels: Sequence[str]) -> Serving:
        """See `Task`: the labels above their thresholds, while transformers would give all of them."""
        return Serving({"labels": [{"label": "string", "score": "double"}]}, {"answers": "labels"})

    def chance(self, rows: GoldRows) -> float:
        """The macro F1 of giving every label to every text."""
        share_C = rows.gold[rows.gold[:, 0] >= 0].mean(axis=0)
        return float((2 * share_C / (1 + share_C)).mean())

    def answer_columns(self, labels: Sequence[str]) -> tuple[str, ...]:
        """See `Task`."""
        return (PREDICTED, *probability_columns(dict.fromkeys(labels, 0.0)))

    def answers(self, outputs: Outputs, columns: TextColumns, labels: Sequence[str]) -> list[SetAnswer]:
        """The labels of each text."""
        given_NxC = _margins(outputs) > 0
        probabilities_NxC = expit(outputs.logits_AxC.astype(np.float64))
        return [
            SetAnswer(
                tuple(label for label, is_given in zip(labels, given_C, strict=True) if is_given),
                dict(zip(labels, probabilities_C.tolist(), strict=True)),
            )
            for given_C, probabilities_C in zip(given_NxC, probabilities_NxC, strict=True)
        ]


def _margins(outputs: Outputs) -> np.ndarray:
    """How far each output is above its threshold (N x C); without thresholds, above the probability 0.5."""
    if outputs.thresholds_C is None:
        return outputs.logits_AxC
    return threshold_margins(outputs.logits_AxC, outputs.thresholds_C)
