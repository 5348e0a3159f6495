"""Value: the only output of an answer is a number in the units of the data.

A model is trained on standardised numbers, because learning rates that fit scores of 0 to 1 do not fit prices. Before
the training its head is changed so that it answers in standardised units, and after it so that it answers in the units
of the data: a saved model needs no further step. Shapes: A answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from kdray.losses.comparison import Comparison, Weights
from kdray.losses.distribution import is_new, output_layer
from kdray.losses.schedule import scheduled
from kdray.losses.soft_term import SoftTerm


@dataclass(frozen=True)
class Value:
    """The terms of the loss for numbers: squared differences in standardised units. See `Distribution`."""

    mean: float
    """The mean of the gold of the training rows."""
    spread: float
    """The standard deviation of the gold of the training rows."""

    settings = scheduled("alpha")

    @classmethod
    def of(cls, gold_A: np.ndarray) -> "Value":
        """The distribution for training rows with this gold; nan stands for no gold."""
        known = gold_A[np.isfinite(gold_A)].astype(np.float64)
        return cls(float(known.mean()), float(known.std()) or 1.0)

    def soft_loss(self, comparison: Comparison, term: SoftTerm) -> Tensor:
        """The squared difference from the teacher, whatever the term; a temperature has no meaning for a number."""
        difference_AxC = comparison.student_AxC - self._standardised(comparison.teacher_AxC)
        return (difference_AxC.square() * comparison.weights).mean(dim=-1)

    def problem_of_term(self, term: type[SoftTerm]) -> str:
        """Empty: `distillation.soft` itself is refused for numbers."""
        return ""

    def hard_loss(self, student_AxC: Tensor, gold: Tensor, weights: Weights = 1.0) -> Tensor:
        """The squared difference from the gold (A); nan stands for no gold."""
        has_gold_A = gold.isfinite()
        expected_A = self._standardised(gold.nan_to_num(self.mean)).to(student_AxC.dtype)
        return ((student_AxC - expected_A[:, None]).square() * weights)[:, 0] * has_gold_A

    def contradicts(self, teacher_AxC: Tensor, gold: Tensor) -> Tensor:
        """False for each answer (A x 1): every number is more or less far from the gold, and none is simply wrong."""
        return torch.zeros_like(teacher_AxC, dtype=torch.bool)

    def start_training(self, model: nn.Module) -> "Value":
        """Let the head answer in standardised units: (w x + b - mean) / spread.

        A new head stays as it is. Its answers are near 0, and in the units of the data that may be 1000 standard
        deviations away from every number: no training of a few epochs would come back from there.
        A head without a bias, as many decoders have, cannot add the mean again after the training. It is trained on
        numbers that are divided by the spread only.
        """
        head = output_layer(model, 1)
        with torch.no_grad():
            if head.bias is None:
                head.weight.div_(self.spread)
                return Value(0.0, self.spread)
            if not is_new(head):
                head.weight.div_(self.spread)
                head.bias.sub_(self.mean).div_(self.spread)
        return self

    def end_training(self, model: nn.Module) -> None:
        """Let the head answer in the units of the data: (w x + b) * spread + mean."""
        head = output_layer(model, 1)
        with torch.no_grad():
            head.weight.mul_(self.spread)
            if head.bias is not None:
                head.bias.mul_(self.spread).add_(self.mean)

    def for_data_units(self) -> "Value":
        """Squared differences in the units of the data."""
        return Value(0.0, 1.0)

    def in_data_units(self, outputs_AxC: np.ndarray) -> np.ndarray:
        """The outputs of a model in training, in the units of the data (A x 1)."""
        return (outputs_AxC * self.spread + self.mean).astype(np.float32)

    def mean_outputs(self, outputs: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
        """The mean of the numbers."""
        return np.average(np.stack(outputs).astype(np.float64), axis=0, weights=weights).astype(np.float32)

    def problem_of(self, stated_AxC: np.ndarray) -> tuple[int, str] | None:
        """An answer that is no finite number in float32."""
        is_wrong_A = ~(np.abs(stated_AxC[:, 0]) <= np.finfo(np.float32).max)
        if not is_wrong_A.any():
            return None
        answer = int(np.flatnonzero(is_wrong_A)[0])
        return answer, f"{stated_AxC[answer, 0]:g} is no finite number"

    def outputs_stating(self, stated_AxC: np.ndarray, floor: float) -> np.ndarray:
        """The numbers themselves."""
        return stated_AxC.astype(np.float32)

    def with_unlisted(self, listed_AxC: np.ndarray) -> np.ndarray:
        """The numbers themselves: there is only one output."""
        return listed_AxC

    def _standardised(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.spread
