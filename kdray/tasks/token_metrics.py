"""Metrics of language models, as functions of counts that may be summed over any texts.

The counts of a text are K = 4 numbers: its answers, the sum of -log p of their gold tokens, and how many gold tokens
are the model's first one, and among its first five. Shapes: N texts, A answers, D numbers that are kept of an answer,
K counts, F first tokens; `...` is any shape, such as that of bootstrap draws.
"""

from collections.abc import Mapping

import numpy as np
import torch
from scipy import sparse

from kdray.losses.top_k import TopK
from kdray.tasks.counts import MetricOfCounts

FIRST = 5
"""The tokens among which a gold token counts as found."""
LARGEST_LOSS = 80.0
"""The perplexity of a larger loss is that of this one: a model that gives all tokens of any vocabulary the same
probability has a loss below 15. So perplexities, and the cubes of them that a bootstrap sums up, stay finite."""


def count_texts(kept_AxD: np.ndarray, gold_A: np.ndarray, starts_N1: np.ndarray) -> sparse.csr_array:
    """The counts of each text (N x K, float64), of the kept outputs of a model.

    `starts_N1` has the first answer of each text and the number of answers. An answer with the gold -1 has none, and is
    left out.
    """
    kept = TopK.of_rows(torch.from_numpy(kept_AxD))
    has_gold_A = gold_A >= 0
    is_found_AxF = kept.ids_AxK[:, :FIRST].numpy() == gold_A[:, None]
    losses_A = -kept.gold_A.numpy().astype(np.float64)
    counts_AxK = np.stack([has_gold_A, losses_A, is_found_AxF[:, 0], is_found_AxF.any(axis=1)], axis=1)
    counts_AxK *= has_gold_A[:, None]
    sums = np.concatenate([np.zeros((1, counts_AxK.shape[1])), np.cumsum(counts_AxK, axis=0, dtype=np.float64)])
    return sparse.csr_array(np.diff(sums[starts_N1], axis=0))


def loss(sums: np.ndarray) -> np.ndarray:
    """The mean of -log p over the tokens, in nats, of summed counts (... x K); 0 without any token."""
    return _share(sums, 1)


def perplexity(sums: np.ndarray) -> np.ndarray:
    """exp(loss): among how many equally probable tokens the model would have to guess."""
    return np.exp(np.minimum(loss(sums), LARGEST_LOSS))


def first_accuracy(sums: np.ndarray) -> np.ndarray:
    """The share of tokens that are the model's most probable one."""
    return _share(sums, 2)


def first_five_accuracy(sums: np.ndarray) -> np.ndarray:
    """The share of tokens that are among the model's five most probable ones."""
    return _share(sums, 3)


def unigram_perplexity(gold_A: np.ndarray) -> float:
    """The perplexity of a model that knows nothing but how often each token occurs where these come from.

    It is exp of the entropy of Chao and Shen (2003), "Nonparametric estimation of Shannon's index of diversity when
    there are unseen species in sample": few tokens show few of those that there are, so the entropy of their own
    frequencies would be too small. An answer with the gold -1 is left out. 1 without any token.
    """
    tokens_A = gold_A[gold_A >= 0]
    if not len(tokens_A):
        return 1.0
    counts_V = np.unique(tokens_A, return_counts=True)[1]
    # The share of the text that consists of tokens which occur here. If each occurs once, it would be 0.
    covered = 1 - min(int((counts_V == 1).sum()), len(tokens_A) - 1) / len(tokens_A)
    shares_V = covered * counts_V / len(tokens_A)
    is_seen_V = -np.expm1(len(tokens_A) * np.log1p(-np.minimum(shares_V, 1 - 1e-12)))
    return float(np.exp(-(shares_V * np.log(shares_V) / is_seen_V).sum()))


def _share(sums: np.ndarray, count: int) -> np.ndarray:
    sums = np.asarray(sums, np.float64)
    return sums[..., count] / np.maximum(sums[..., 0], 1.0)


TOKEN_METRICS: Mapping[str, MetricOfCounts] = {
    "perplexity": perplexity,
    "loss": loss,
    "token_accuracy": first_accuracy,
    "top5_accuracy": first_five_accuracy,
}
"""Name of a metric -> its value for summed counts."""
