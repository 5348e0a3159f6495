"""Regression: a number for a text, or for a pair of texts, such as a score or how similar two sentences are.

A model is trained on standardised numbers and answers in the units of the data: see `kdray.losses.value`.
Shapes: N rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from kdray.data.gold import Numbers
from kdray.data.number_cells import number_column
from kdray.data.task_data import CheckedTable, LabelOrder, TextColumns
from kdray.errors import DataError
from kdray.losses.value import Value
from kdray.sources.tables import Table
from kdray.tasks.answers import PREDICTED
from kdray.tasks.correlation import NUMBER_METRICS, correlation, number_counts, spearman
from kdray.tasks.counts import Counts, Metric
from kdray.tasks.serving import Serving
from kdray.tasks.task import LARGEST_LOGIT_DIFFERENCE, GoldRows, Outputs
from kdray.tasks.texts import TextTask, check_columns
from kdray.tasks.usage import number_code, onnx_classifier_code

PEARSON = Metric("pearson", hub="pearsonr", heading="Pearson", noun="Pearson correlation")
SPEARMAN = Metric("spearman", hub="spearmanr", heading="Spearman", noun="Spearman correlation")
MSE = Metric("mse", "minimize", hub="mse", heading="MSE", is_share=False)
MAE = Metric("mae", "minimize", hub="mae", heading="MAE", is_share=False)

FLOAT32_ROUNDING = 1e-5
"""The share of a number that the rounding of a whole model in float32 stays below."""
_SHOW_NUMBER = ('print(round(float(session.run(["logits"], inputs)[0][0][0]), 4))',)


@dataclass(frozen=True)
class NumberAnswer:
    """The number of a text."""

    value: float

    def cells(self) -> list[str]:
        """The number with four digits behind the point."""
        return [f"{self.value:.4f}"]

    def columns(self) -> dict[str, Any]:
        """The number."""
        return {PREDICTED: round(self.value, 6)}


class Regression(TextTask):
    """The columns to read, the range of the numbers, and the maximum length of a text."""

    kind: Literal["regression"] = "regression"
    label: str = Field("label", min_length=1)
    """The name of the column with the number."""
    range: tuple[float, float] | None = None
    """The smallest and the largest number that a row may have; None: any number."""

    problem_type: ClassVar[str | None] = "regression"
    agreement_meaning: ClassVar[str] = "Pearson's correlation of the predicted numbers"

    @property
    def name(self) -> str:
        """See `Task`."""
        return "regression"

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        check_columns(text=self.text, pair=self.pair, label=self.label)
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(
                f"Regression.range: got {self.range}; give the smallest number before the largest, such as [0, 5]."
            )
        return self

    def read(
        self, table: Table, class_names: Sequence[str] | None, may_lack_gold: bool, may_be_empty: bool = False
    ) -> CheckedTable:
        """See `TaskData`. Raises DataError for a number outside of `range`, too."""
        texts = self.read_texts(table)
        if may_lack_gold and table.column(self.label) is None:
            return CheckedTable(where=table.where, gold=None, **texts)
        values_N = number_column(table, self.label, "task.label")
        gold = Numbers(values_N)
        if not (may_lack_gold and gold.is_hidden(may_be_minus_one=False)):
            self._check_range(table, values_N)
        return CheckedTable(where=table.where, gold=gold, **texts)

    def _check_range(self, table: Table, values_N: np.ndarray) -> None:
        low, high = self.range or (-np.inf, np.inf)
        outside = np.flatnonzero((values_N < low) | (values_N > high))
        if len(outside):
            raise DataError(
                f"{table.where}, row {outside[0] + 1}, column {self.label!r}: {values_N[outside[0]]:g} is outside of "
                f"the range {low:g} to {high:g} (task.range). Correct or remove that row, or change the range."
            )

    @property
    def gold_columns(self) -> tuple[str, ...]:
        """See `Task`."""
        return (self.label,)

    def class_names(self, table: Table) -> tuple[str, ...] | None:
        """Numbers have no names."""
        return None

    def order_labels(self, train: Sequence[CheckedTable], class_names: Sequence[str] | None) -> LabelOrder:
        """No labels, and a note with the range of the numbers in the training rows."""
        values = np.concatenate([part.gold.values for part in train if isinstance(part.gold, Numbers)])
        known = values[~np.isnan(values)]
        if not len(known):
            return LabelOrder((), {})
        return LabelOrder(
            (), {}, (f"train: numbers from {known.min():g} to {known.max():g}, mean {known.mean():.4g}.",)
        )

    def head_settings(self, labels: Sequence[str]) -> dict[str, Any]:
        """One output."""
        return {"num_labels": 1, "problem_type": self.problem_type}

    @property
    def quality(self) -> Metric:
        """Pearson's correlation with the gold."""
        return PEARSON

    def metrics(self, labels: Sequence[str] | None) -> tuple[Metric, ...]:
        """Pearson's and Spearman's correlation with the gold, and the mean squared and absolute error."""
        return (PEARSON, SPEARMAN, MSE, MAE)

    def distribution(self, gold: np.ndarray) -> Value:
        """See `Task`."""
        return Value.of(gold)

    def counts(self, outputs: Outputs, rows: GoldRows) -> Counts:
        """See `Task`."""
        return Counts(number_counts(outputs.logits_AxC[:, 0], rows.gold), NUMBER_METRICS)

    def values_without_counts(self, outputs: Outputs, rows: GoldRows) -> dict[str, float]:
        """Spearman's correlation, which needs the ranks of all rows."""
        known = np.isfinite(rows.gold)
        return {SPEARMAN.name: spearman(outputs.logits_AxC[known, 0], rows.gold[known])}

    def agreement(self, student: Outputs, teacher: Outputs) -> float:
        """Pearson's correlation of the two models' numbers."""
        return correlation(student.logits_AxC[:, 0], teacher.logits_AxC[:, 0])

    def predicts(self, labels: Sequence[str]) -> str:
        """See `Task`."""
        numbers = f"from {self.range[0]:g} to {self.range[1]:g}" if self.range else "in the units of the training rows"
        return f"a number {numbers}"

    def pytorch_code(self, labels: Sequence[str]) -> str:
        """See `Task`."""
        return number_code(self.max_length, self.pair is not None)

    def onnx_code(self, file: str) -> str:
        """See `Task`."""
        return onnx_classifier_code(file, self.max_length, self.pair is not None, _SHOW_NUMBER)

    def allowed_difference(self, outputs: Outputs) -> float:
        """A share of the spread of the numbers, because their units may be anything, such as prices.

        Numbers far from zero, such as years, are rounded more coarsely in float32 than their spread tells.
        """
        return float(
            LARGEST_LOGIT_DIFFERENCE * outputs.logits_AxC.std(dtype=np.float64)
            + FLOAT32_ROUNDING * np.abs(outputs.logits_AxC).max()
        )

    def serving(self, labels: Sequence[str]) -> Serving:
        """See `Task`: the number alone, while transformers would give it the label LABEL_0, too."""
        return Serving({"score": "double"}, {"answers": "number"})

    def chance(self, rows: GoldRows) -> float:
        """The same number for every text has no correlation with the gold."""
        return 0.0

    def other_units(self, outputs: Outputs, rows: GoldRows) -> str | None:
        """See `Task`: one number for all texts would be nearer to the gold, although the correlation is good."""
        answers_N, gold_N = outputs.logits_AxC[:, 0].astype(np.float64), rows.gold
        if np.nanmean((answers_N - gold_N) ** 2) <= np.nanvar(gold_N):
            return None
        own, data = (f"from {each.min():.4g} to {each.max():.4g}" for each in (answers_N, gold_N[~np.isnan(gold_N)]))
        return f"its numbers are in other units: they are {own}, those of the data {data}"

    def answer_columns(self, labels: Sequence[str]) -> tuple[str, ...]:
        """See `Task`."""
        return (PREDICTED,)

    def answers(self, outputs: Outputs, columns: TextColumns, labels: Sequence[str]) -> list[NumberAnswer]:
        """The number of each text."""
        return [NumberAnswer(float(value)) for value in outputs.logits_AxC[:, 0]]
