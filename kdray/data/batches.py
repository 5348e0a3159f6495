"""The order in which rows are put into batches: by length within shuffled pools, or longest first."""

from collections.abc import Iterator

import numpy as np

BUCKET_BATCHES = 50
"""Batches cut from one shuffled pool sorted by length: more pads less, fewer mixes better."""


def epoch_batches(lengths: np.ndarray, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """The row numbers of each global batch of an epoch: every row once, rows of like length together, shuffled.

    Depends on the arguments alone. The last batch may be short.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    pool = batch_size * BUCKET_BATCHES
    batches = [
        batch
        for start in range(0, len(order), pool)
        for batch in _cut(_by_length(order[start : start + pool], lengths), batch_size)
    ]
    full = len(lengths) // batch_size
    return [batches[place] for place in random.permutation(full)] + batches[full:]


def ordered_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The row numbers of each batch, longest rows first, for evaluation and labelling; the last batch may be short."""
    return list(_cut(_by_length(np.arange(len(lengths)), lengths)[::-1], batch_size))


def _by_length(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return rows[np.argsort(lengths[rows], kind="stable")]


def _cut(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
