"""How often the texts of a sweep use each piece of a tokenizer, and what changes for them without some pieces.

Array names: V ids of a tokenizer.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kdray.data.rows import TRAIN
from kdray.data.tokens import TokenSet

ROWS_AT_ONCE = 2048
"""Rows whose ids are in memory together."""


def count_uses(tokens: TokenSet, size: int) -> np.ndarray:
    """How often the texts to train on use each id below `size` (V, int64); a larger id is counted nowhere.

    All texts count, labelled or not. Changed copies do not: their number is a setting that a sweep searches, and the
    vocabulary must not depend on it.
    """
    counts_V = np.zeros(size, np.int64)
    for ids in _ids_of_texts(tokens):
        counts_V += np.bincount(ids, minlength=size)[:size]
    return counts_V


@dataclass(frozen=True)
class Change:
    """What changes for the texts to train on when another tokenizer reads them."""

    otherwise: float
    """The share of their tokens that become other tokens, which are known."""
    unknown: float
    """The share of their tokens that become the unknown token."""
    length: float
    """The number of tokens, as a multiple of the earlier one."""


def measure_change(before: TokenSet, after: TokenSet, removed: int, unknown: tuple[int | None, int | None]) -> Change:
    """Compare the texts to train on, in the ids of two tokenizers.

    `removed` is the number of tokens of `before` whose pieces `after` does not have; `unknown` are the ids of the
    unknown tokens of both, None for a tokenizer that has none.
    """
    totals, unknowns = [], []
    for tokens, unknown_id in zip((before, after), unknown, strict=True):
        total = new_unknown = 0
        for ids in _ids_of_texts(tokens):
            total += len(ids)
            new_unknown += 0 if unknown_id is None else int((ids == unknown_id).sum())
        totals.append(max(total, 1))
        unknowns.append(new_unknown)
    # A removed piece may become several unknown tokens; no more tokens of before can be unknown than were removed.
    became_unknown = min(max(unknowns[1] - unknowns[0], 0), removed)
    return Change(
        otherwise=(removed - became_unknown) / totals[0],
        unknown=became_unknown / totals[0],
        length=totals[1] / totals[0],
    )


def _ids_of_texts(tokens: TokenSet) -> Iterator[np.ndarray]:
    """The ids of the texts to train on, of `ROWS_AT_ONCE` rows at a time, without padding."""
    for rows in tokens.unchanged_blocks(TRAIN):
        for start in range(0, len(rows), ROWS_AT_ONCE):
            inputs = rows.batch(np.arange(start, min(start + ROWS_AT_ONCE, len(rows)))).inputs
            yield inputs["input_ids"][inputs["attention_mask"].bool()].numpy()
