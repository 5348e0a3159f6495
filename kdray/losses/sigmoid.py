"""Sigmoid: each of C labels holds or does not hold, and its output is the logit of the probability that it holds.

A new head begins with the shares of the labels in the training rows. Shapes: A answers, C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kdray.losses.comparison import Comparison, Weights
from kdray.losses.distribution import Unchanged, is_new, output_layer, outside_of_0_and_1
from kdray.losses.soft_term import SoftTerm
from kdray.losses.soft_terms import PROBABILITY_SETTINGS


@dataclass(frozen=True, eq=False)
class Sigmoid(Unchanged):
    """The terms of the loss for logits of independent labels. See `Distribution`.

    All terms are means over the labels, as in transformers' `BCEWithLogitsLoss` for several labels: the same learning
    rates then fit 3 labels and 300.
    """

    log_odds_C: np.ndarray | None = None
    """The logarithm of (rows with the label + 1) / (rows without it + 1), of the training rows; None: unknown."""

    # Without `standardize`: it would move the logit 0, at which a label is as likely as not.
    settings = PROBABILITY_SETTINGS

    @classmethod
    def of(cls, gold_AxC: np.ndarray) -> "Sigmoid":
        """The distribution for training rows with these labels (1: holds, 0: does not hold, -1: unknown)."""
        with_label_C, without_C = (gold_AxC == 1).sum(axis=0), (gold_AxC == 0).sum(axis=0)
        return cls(np.log((with_label_C + 1) / (without_C + 1)))

    def soft_loss(self, comparison: Comparison, term: SoftTerm) -> Tensor:
        """The term for independent labels."""
        return term.of_labels(comparison)

    def problem_of_term(self, term: type[SoftTerm]) -> str:
        """See `Distribution`."""
        return term.why_not_labels

    def hard_loss(self, student_AxC: Tensor, gold: Tensor, weights: Weights = 1.0) -> Tensor:
        """Binary cross-entropy with the gold labels (A x C: 1, 0; -1 in a row without gold)."""
        has_gold_A = gold[:, 0] >= 0
        loss_AxC = functional.binary_cross_entropy_with_logits(
            student_AxC, gold.clamp(min=0).to(student_AxC.dtype), reduction="none"
        )
        return (loss_AxC * weights).mean(dim=-1) * has_gold_A

    def contradicts(self, teacher_AxC: Tensor, gold: Tensor) -> Tensor:
        """Whether the teacher gives a label that does not hold, or does not give one that holds (A x C).

        A label is given if its probability is above one half: the thresholds of the task are chosen after the training.
        Each label is a decision of its own, as in both terms (Yang et al. 2023, arXiv:2308.06453): a teacher that is
        wrong about one label of thirty still teaches the others.
        """
        return ((teacher_AxC > 0) != (gold == 1)) & (gold >= 0)

    def mean_outputs(self, outputs: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
        """The logit of the mean of sigmoid(x), in float64 and without leaving the logarithms."""
        logs = [
            (np.log(weight), each_AxC.astype(np.float64)) for each_AxC, weight in zip(outputs, weights, strict=True)
        ]
        yes_AxC = np.logaddexp.reduce([log_weight - np.logaddexp(0, -each_AxC) for log_weight, each_AxC in logs])
        no_AxC = np.logaddexp.reduce([log_weight - np.logaddexp(0, each_AxC) for log_weight, each_AxC in logs])
        return (yes_AxC - no_AxC).astype(np.float32)

    def problem_of(self, stated_AxC: np.ndarray) -> tuple[int, str] | None:
        """An answer with a number outside of 0 and 1; the labels are independent, so they need not add up to 1."""
        return outside_of_0_and_1(stated_AxC)

    def outputs_stating(self, stated_AxC: np.ndarray, floor: float) -> np.ndarray:
        """The logits of the probabilities; neither a label nor its absence is less probable than `floor`."""
        clipped_AxC = np.clip(stated_AxC, floor, 1 - floor)
        return np.log(clipped_AxC / (1 - clipped_AxC)).astype(np.float32)

    def with_unlisted(self, listed_AxC: np.ndarray) -> np.ndarray:
        """0 for the labels that are not listed."""
        return np.nan_to_num(listed_AxC, nan=0.0)

    def start_training(self, model: nn.Module) -> Self:
        """Let a new head answer with the share of each label (Lin et al. 2017, arXiv:1708.02002, section 3.3).

        Otherwise it begins with a probability of one half for each label. Where most labels are rare, hundreds of steps
        then go into nothing but making all probabilities small, and a short training learns nothing else.
        """
        if self.log_odds_C is not None:
            head = output_layer(model, len(self.log_odds_C))
            if is_new(head):
                with torch.no_grad():
                    head.bias.copy_(torch.from_numpy(self.log_odds_C))
        return self
