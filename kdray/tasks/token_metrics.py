"""Metrics of language models, as functions of counts that may be summed over any texts.

The counts of a text are K = 4 numbers: its answers, the sum of -log p of their gold tokens, and how many gold tokens
are the model's first one, and among its first five. Shapes: N texts, A answers, D numbers that are kept of an answer,
K counts; `...` is any shape, such as that of bootstrap draws.
"""

from collections.abc import Mapping

import numpy as np
import torch
from scipy import sparse

from kdray.losses.top_k import TopK
from kdray.tasks.counts import MetricOfCounts

FIRST = 5
"""The tokens among which a gold token counts as found."""
LARGEST_LOSS = 700.0
"""exp() of more is no finite number; a model so bad has this perplexity's logarithm."""


def count_texts(kept_AxD: np.ndarray, gold_A: np.ndarray, starts_N1: np.ndarray) -> sparse.csr_array:
    """The counts of each text (N x K, float64), of the kept outputs of a model.

    `starts_N1` has the first answer of each text and the number of answers. An answer with the gold -1 has none, and is
    left out.
    """
    kept = TopK.of_rows(torch.from_numpy(kept_AxD))
    has_gold_A = gold_A >= 0
    is_found_AxK = kept.ids_AxK[:, :FIRST].numpy() == gold_A[:, None]
    counts_AxK = (
        np.stack(
            [has_gold_A, -kept.gold_A.numpy().astype(np.float64), is_found_AxK[:, 0], is_found_AxK.any(axis=1)], axis=1
        )
        * has_gold_A[:, None]
    )
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
