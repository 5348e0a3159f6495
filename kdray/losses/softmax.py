"""Softmax: each answer is one of C classes, and its outputs are the logits of their probabilities.

Shapes: A answers, C classes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kdray.losses.comparison import Comparison, Weights
from kdray.losses.distribution import SUM_TOLERANCE, Unchanged, outside_of_0_and_1
from kdray.losses.soft_term import SoftTerm
from kdray.losses.soft_terms import PROBABILITY_SETTINGS

NO_GOLD = -1
"""The class of an answer that has no gold."""


class Softmax(Unchanged):
    """The terms of the loss for logits of classes. See `Distribution`."""

    settings = PROBABILITY_SETTINGS | {"standardize"}

    def soft_loss(self, comparison: Comparison, term: SoftTerm) -> Tensor:
        """The term for classes."""
        return term.of_classes(comparison)

    def problem_of_term(self, term: type[SoftTerm]) -> str:
        """Empty: every term is defined for classes."""
        return ""

    def hard_loss(self, student_AxC: Tensor, gold: Tensor, weights: Weights = 1.0) -> Tensor:
        """Cross-entropy of the student's distribution with the gold classes (A, int64)."""
        loss_A = functional.cross_entropy(student_AxC, gold, reduction="none", ignore_index=NO_GOLD)
        return (loss_A[:, None] * weights)[:, 0]

    def contradicts(self, teacher_AxC: Tensor, gold: Tensor) -> Tensor:
        """Whether the teacher's most probable class is not the gold class (A x 1)."""
        return ((teacher_AxC.argmax(dim=-1) != gold) & (gold != NO_GOLD))[:, None]

    def mean_outputs(self, outputs: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
        """The logarithm of the mean of softmax(x), in float64 and without leaving the logarithms."""
        parts = [
            np.log(weight) + functional.log_softmax(torch.from_numpy(each_AxC).double(), dim=-1).numpy()
            for each_AxC, weight in zip(outputs, weights, strict=True)
        ]
        return np.logaddexp.reduce(parts).astype(np.float32)

    def problem_of(self, stated_AxC: np.ndarray) -> tuple[int, str] | None:
        """An answer with a number outside of 0 and 1, or whose probabilities do not add up to 1."""
        problem = outside_of_0_and_1(stated_AxC)
        sums_A = stated_AxC.sum(axis=1)
        is_off_A = np.abs(sums_A - 1) > SUM_TOLERANCE
        if problem is None and is_off_A.any():
            answer = int(np.flatnonzero(is_off_A)[0])
            return answer, f"its probabilities add up to {sums_A[answer]:.4g}, not to 1"
        return problem

    def outputs_stating(self, stated_AxC: np.ndarray, floor: float) -> np.ndarray:
        """The logarithms of the probabilities."""
        return np.log(np.maximum(stated_AxC, floor)).astype(np.float32)

    def with_unlisted(self, listed_AxC: np.ndarray) -> np.ndarray:
        """Equal shares, for the classes that are not listed, of what is missing to 1."""
        is_listed_AxC = np.isfinite(listed_AxC)
        rest_Ax1 = np.maximum(0, 1 - np.nansum(listed_AxC, axis=1, keepdims=True))
        unlisted_Ax1 = np.maximum(1, (~is_listed_AxC).sum(axis=1, keepdims=True))
        return np.where(is_listed_AxC, listed_AxC, rest_Ax1 / unlisted_Ax1)


SOFTMAX = Softmax()
