"""The outputs over a vocabulary in few numbers: the k most probable tokens, the rest as one class, and the gold token.

A language model gives one logit for each of 30,000 to 250,000 tokens at every answer. Kept are, for each answer, in one
row of float32:

    k logarithms of probabilities, the largest first | their k token ids | the rest at each of `KNOTS` | the gold's

All are those at temperature 1. The rest at an inverse temperature b is log(sum of p^b over the other tokens), a smooth
convex function of b: exact at the knots, and between them on a cubic curve through the knots around, within the limits
that convexity gives. So the k tokens and the rest have the right proportions at the knots, and nearly so between them.
Token ids are whole numbers below 2^24, which float32 has exactly.

Shapes: A answers, V tokens of the vocabulary, K kept tokens, T knots, D numbers of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Self

import numpy as np
import torch
from torch import Tensor

from kdray.errors import SpecError
from kdray.losses.comparison import Outcomes

KNOTS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0)
"""The inverse temperatures at which the rest is kept: temperatures 1/4, 1/2, 1, 2, 4, 8 and infinite."""
LARGEST_VOCABULARY = 2**24
"""float32 has every whole number up to this one."""
SMALLEST_LOG = -1e30
"""Stands for the logarithm of 0, so that all kept numbers are finite."""


@dataclass(frozen=True)
class TopK:
    """The kept outputs of some answers."""

    logs_AxK: Tensor
    """The logarithms of the largest probabilities, in descending order."""
    ids_AxK: Tensor
    """Their tokens, int64."""
    rest_AxT: Tensor
    """The logarithm of the sum of p^b over all other tokens, for each inverse temperature b in `KNOTS`."""
    gold_A: Tensor
    """The logarithm of the probability of the gold token; 0 for an answer without gold."""

    @classmethod
    def of_logits(cls, logits_AxV: Tensor, gold_A: Tensor, k: int) -> Self:
        """Keep what matters of these logits. At most V - 1 tokens are kept; a gold of -1 is none.

        Raises SpecError for a vocabulary with more than `LARGEST_VOCABULARY` tokens.
        """
        if logits_AxV.shape[-1] > LARGEST_VOCABULARY:
            raise SpecError(
                f"the vocabulary of the model has {logits_AxV.shape[-1]:,} tokens, and the outputs of at most "
                f"{LARGEST_VOCABULARY:,} can be kept. Give a model with fewer tokens."
            )
        logs_AxV = torch.log_softmax(logits_AxV.float(), dim=-1)
        logs_AxK, ids_AxK = logs_AxV.topk(min(k, logs_AxV.shape[-1] - 1), dim=-1)
        others_AxV = logs_AxV.scatter(-1, ids_AxK, -torch.inf)
        has_gold_A = gold_A >= 0
        gold_logs_A = logs_AxV.gather(-1, gold_A.clamp(min=0)[:, None])[:, 0]
        return cls(
            logs_AxK.clamp(min=SMALLEST_LOG),
            ids_AxK,
            _rest(others_AxV),
            torch.where(has_gold_A, gold_logs_A, 0.0).clamp(min=SMALLEST_LOG),
        )

    @classmethod
    def of_rows(cls, kept_AxD: Tensor) -> Self:
        """Read rows that `rows` has made."""
        k = (kept_AxD.shape[-1] - len(KNOTS) - 1) // 2
        logs_AxK, ids_AxK, rest_AxT, gold_Ax1 = kept_AxD.split((k, k, len(KNOTS), 1), dim=-1)
        return cls(logs_AxK, ids_AxK.long(), rest_AxT, gold_Ax1[:, 0])

    def rows(self) -> Tensor:
        """All numbers of each answer in one row (A x D, float32)."""
        parts = (self.logs_AxK, self.ids_AxK.float(), self.rest_AxT, self.gold_A[:, None])
        return torch.cat(parts, dim=-1)

    @property
    def captured(self) -> Tensor:
        """The probability of the kept tokens of each answer together, at temperature 1 (A)."""
        return self.logs_AxK.exp().sum(dim=-1)

    def outcomes(self, temperature: float) -> Outcomes:
        """The probabilities of the kept tokens and of the rest (A x K + 1) at this temperature."""
        rest_Ax1 = _between_knots(self.rest_AxT, 1 / temperature)[:, None]
        logs_AxK1 = torch.cat([self.logs_AxK / temperature, rest_Ax1], dim=-1)
        return Outcomes.of_classes(logs_AxK1.clamp(min=SMALLEST_LOG))

    def outcomes_of(self, logits_AxV: Tensor, temperature: float) -> Outcomes:
        """The probabilities that other logits give to the same tokens, and to all others together (A x K + 1)."""
        scaled_AxV = logits_AxV / temperature
        others_AxV = scaled_AxV.scatter(-1, self.ids_AxK, -torch.inf)
        rest_Ax1 = others_AxV.logsumexp(dim=-1, keepdim=True)
        return Outcomes.of_classes(torch.cat([scaled_AxV.gather(-1, self.ids_AxK), rest_Ax1], dim=-1))


def numbers_kept(k: int) -> int:
    """The numbers that are kept of an answer: D."""
    return 2 * k + len(KNOTS) + 1


def logs_only(kept_AxD: np.ndarray) -> np.ndarray:
    """The logarithms of kept rows, without token ids: what two computations of the same outputs may be compared by.

    Of two tokens that are nearly as probable, rounding decides which one comes first.
    """
    k = (kept_AxD.shape[1] - len(KNOTS) - 1) // 2
    return np.delete(kept_AxD, np.s_[k : 2 * k], axis=1)


def _rest(others_AxV: Tensor) -> Tensor:
    """The logarithm of the sum of p^b over the tokens that are not -inf, for each inverse temperature b (A x T)."""
    largest_Ax1 = others_AxV.amax(dim=-1, keepdim=True).clamp(min=SMALLEST_LOG)
    # Each knot is twice the next one: one exponential and squares of it, in place of an exponential for each knot.
    powers_AxV = ((others_AxV - largest_Ax1) * KNOTS[-2]).exp_()
    sums = [(~others_AxV.isneginf()).sum(dim=-1).to(others_AxV.dtype).log()]
    for knot in reversed(KNOTS[:-1]):
        sums.append(powers_AxV.sum(dim=-1).log() + knot * largest_Ax1[:, 0])
        powers_AxV.square_()
    return torch.stack(sums[::-1], dim=-1).clamp(min=SMALLEST_LOG)


def _between_knots(rest_AxT: Tensor, inverse: float) -> Tensor:
    """The rest at this inverse temperature (A)."""
    knots = range(len(KNOTS))
    right = next((place for place in knots[1:] if KNOTS[place] <= inverse), knots[-1])
    left = right - 1
    highest_A = _through(rest_AxT, (left, right), inverse)
    if inverse >= KNOTS[0]:
        # Below the lowest temperature of a knot the line goes on. The rest is larger than that, but small beside the
        # kept tokens, each of which is at least as probable as any other one.
        return highest_A
    # A convex function is below the line through the knots around, and above the lines through their neighbours.
    beside = [pair for pair in ((left - 1, left), (right, right + 1)) if pair[0] in knots and pair[1] in knots]
    lowest_A = torch.stack([_through(rest_AxT, pair, inverse) for pair in beside]).amax(dim=0)
    around = knots[max(0, left - 1) : right + 2]
    return torch.minimum(torch.maximum(_through(rest_AxT, around, inverse), lowest_A), highest_A)


def _through(rest_AxT: Tensor, places: Sequence[int], inverse: float) -> Tensor:
    """The polynomial through these knots (Lagrange's form) at this inverse temperature (A)."""
    weights = [
        prod((inverse - KNOTS[other]) / (KNOTS[place] - KNOTS[other]) for other in places if other != place)
        for place in places
    ]
    return torch.stack([weight * rest_AxT[:, place] for weight, place in zip(weights, places, strict=True)]).sum(dim=0)
