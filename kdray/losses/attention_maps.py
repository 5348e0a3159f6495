"""Terms that compare the attention of each token to the others: its scores, or the shares after the softmax.

A pair of tokens counts if both models allow it and neither token is padding. Where the numbers of heads differ, heads
cannot be compared one by one: the means over the heads are compared, of the pairs that all heads allow.
Shapes: B rows, A heads (1 after a mean over them), L tokens of the longest row, N tokens without padding.
"""

import math

import torch
from torch import Tensor

from kdray.losses.inner_term import AttentionTerm
from kdray.losses.states import Attention
from kdray.losses.token_pairs import divergence, log_shares, pair_scores, pairs_of_tokens


class AttentionScores(AttentionTerm):
    """The mean squared difference of the scores before the softmax, over heads and over the tokens that a token may
    look at: the attention based distillation of Jiao et al. 2020, arXiv:1909.10351, section 3.1."""

    name = "attention_scores"

    def values(self, student: Attention, teacher: Attention, is_token_BxL: Tensor) -> Tensor:
        """See `AttentionTerm`."""
        counts = _counting_pairs(student, teacher, is_token_BxL)
        student_BxAxLxL, teacher_BxAxLxL = (_scores(each, is_token_BxL) for each in (student, teacher))
        if _heads(student) != _heads(teacher):
            student_BxAxLxL, teacher_BxAxLxL = (
                each.mean(1, keepdim=True) for each in (student_BxAxLxL, teacher_BxAxLxL)
            )
        squares_BxAxLxL = (student_BxAxLxL - teacher_BxAxLxL).square().masked_fill(~counts, 0.0)
        value_BxAxL = squares_BxAxLxL.sum(dim=-1) / counts.sum(dim=-1).clamp(min=1)
        return value_BxAxL.mean(dim=1)[is_token_BxL]


class AttentionMaps(AttentionTerm):
    """KL(teacher || student) of the attention of each token, mean over the heads: the attention transfer of Sun et al.
    2020, arXiv:2004.02984 (also Wang et al. 2020, arXiv:2002.10957, section 3.1).

    Both softmaxes are over the pairs that count: a token that one model may not look at has no share in the other.
    """

    name = "attention_maps"

    def values(self, student: Attention, teacher: Attention, is_token_BxL: Tensor) -> Tensor:
        """See `AttentionTerm`."""
        counts = _counting_pairs(student, teacher, is_token_BxL)
        student_BxAxLxL, teacher_BxAxLxL = (
            log_shares(_scores(each, is_token_BxL), counts) for each in (student, teacher)
        )
        if _heads(student) != _heads(teacher):
            student_BxAxLxL, teacher_BxAxLxL = _log_mean(student_BxAxLxL), _log_mean(teacher_BxAxLxL)
        return divergence(student_BxAxLxL, teacher_BxAxLxL).mean(dim=1)[is_token_BxL]


def _heads(attention: Attention) -> int:
    return attention.queries_BxAxLxD.shape[1]


def _scores(attention: Attention, is_token_BxL: Tensor) -> Tensor:
    return pair_scores(attention.queries_BxAxLxD, attention.keys_BxAxLxD, attention.scaling, is_token_BxL)


def _counting_pairs(student: Attention, teacher: Attention, is_token_BxL: Tensor) -> Tensor:
    """Whether a pair of tokens counts: bool, B x A x L x L, or B x 1 x L x L where it is the same for all heads."""
    counts = pairs_of_tokens(is_token_BxL)
    for attention in (student, teacher):
        allowed = attention.allowed
        if allowed is None:
            continue
        if _heads(student) != _heads(teacher) and allowed.ndim > 2:
            allowed = allowed.all(dim=-3, keepdim=True)
        counts = counts & allowed
    return counts


def _log_mean(logs_BxAxLxL: Tensor) -> Tensor:
    """The logarithm of the mean of the shares over the heads (B x 1 x L x L)."""
    # From the logarithms: a share that is too small for a float would have the logarithm -inf.
    return torch.logsumexp(logs_BxAxLxL, dim=1, keepdim=True) - math.log(logs_BxAxLxL.shape[1])
