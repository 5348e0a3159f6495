"""The order in which rows are put into batches: by length within shuffled pools, or longest first."""

from collections.abc import Iterator

import numpy as np

BUCKET_BATCHES = 50
"""The number of batches that are cut from one shuffled pool after sorting it by length.

A larger pool needs less padding, but its batches are less random.
"""


def epoch_batches(lengths: np.ndarray, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """The row numbers of each global batch of an epoch: each row once, rows of similar length together, shuffled.

    The result depends on the arguments alone, so that every rank and every resumed training computes the same batches.
    `lengths` has the number of tokens of each row. The last batch may be smaller than `batch_size`.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    pool_size = batch_size * BUCKET_BATCHES
    batches = [
        batch
        for start in range(0, len(order), pool_size)
        for batch in _slices(_sort_by_length(order[start : start + pool_size], lengths), batch_size)
    ]
    full_batches = len(lengths) // batch_size
    # Inside a pool the batches are in order of length, so they are shuffled. Only full ones: the short one stays last.
    return [batches[number] for number in random.permutation(full_batches)] + batches[full_batches:]


def ordered_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The row numbers of each batch, longest rows first, for evaluation and labelling; the last batch may be short."""
    return list(_slices(_sort_by_length(np.arange(len(lengths)), lengths)[::-1], batch_size))


def batches_of_equal_length(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The row numbers of each batch, longest rows first; the rows of a batch have the same length: no padding."""
    order = _sort_by_length(np.arange(len(lengths)), lengths)[::-1]
    changes = np.flatnonzero(np.diff(lengths[order])) + 1
    return [batch for rows in np.split(order, changes) for batch in _slices(rows, batch_size)]


def _sort_by_length(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    # A stable sort leaves rows of equal length in their order, on every machine.
    return rows[np.argsort(lengths[rows], kind="stable")]


def _slices(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
