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


def ordered_batches(lengths: np.ndarray, batch_size: int, most_tokens: int | None = None) -> list[np.ndarray]:
    """The row numbers of each batch, longest rows first, for evaluation and labelling.

    A batch has at most `batch_size` rows and, padding included, `most_tokens` tokens, but at least one row.
    """
    order = _sort_by_length(np.arange(len(lengths)), lengths)[::-1]
    return list(_parts(order, lengths, batch_size, most_tokens))


def batches_of_equal_length(lengths: np.ndarray, batch_size: int, most_tokens: int | None = None) -> list[np.ndarray]:
    """As `ordered_batches`, but the rows of a batch have the same length, so there is no padding."""
    order = _sort_by_length(np.arange(len(lengths)), lengths)[::-1]
    changes = np.flatnonzero(np.diff(lengths[order])) + 1
    return [batch for rows in np.split(order, changes) for batch in _parts(rows, lengths, batch_size, most_tokens)]


def _sort_by_length(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    # A stable sort leaves rows of equal length in their order, on every machine.
    return rows[np.argsort(lengths[rows], kind="stable")]


def _parts(rows: np.ndarray, lengths: np.ndarray, size: int, most_tokens: int | None) -> Iterator[np.ndarray]:
    """The rows, which are in descending order of length, in batches within both limits."""
    start = 0
    while start < len(rows):
        longest = max(1, int(lengths[rows[start]]))
        count = size if most_tokens is None else min(size, max(1, most_tokens // longest))
        yield rows[start : start + count]
        start += count


def _slices(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
