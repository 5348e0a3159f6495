"""Masking: which tokens of a text a masked language model has to guess, and what stands in their place.

As in BERT (Devlin et al. 2019, arXiv:1810.04805, section 3.1): of the chosen tokens 80 % become the mask token, 10 % a
token drawn from the vocabulary, and 10 % stay. Shapes: P places at which a text may be masked, M chosen ones.
"""

from dataclasses import dataclass

import numpy as np

MASKED, DRAWN = 0.8, 0.1
"""The shares of the chosen tokens that become the mask token, and any token. The others stay."""


@dataclass(frozen=True)
class Masking:
    """How the tokens of a text are masked."""

    share: float
    """The share of the tokens that is chosen, at least one."""
    mask_token: int
    vocabulary: int
    """Token ids are drawn from 0 to `vocabulary` - 1."""

    def choose(self, random: np.random.Generator, places: int, begins_P: np.ndarray | None = None) -> np.ndarray:
        """The chosen ones of so many places, in ascending order (M).

        With `begins_P`, which says where a word begins, whole words are chosen until there are enough tokens.
        """
        wanted = min(places, max(1, round(self.share * places)))
        if begins_P is None:
            return np.sort(random.permutation(places)[:wanted])
        word_P = np.cumsum(begins_P.astype(bool)) - int(bool(places) and bool(begins_P[0]))
        sizes_W = np.bincount(word_P, minlength=1)
        order_W = random.permutation(len(sizes_W))
        words = order_W[: int(np.searchsorted(np.cumsum(sizes_W[order_W]), wanted)) + 1]
        return np.flatnonzero(np.isin(word_P, words))

    def replace(self, random: np.random.Generator, tokens_M: np.ndarray) -> np.ndarray:
        """What stands in the place of the chosen tokens (M)."""
        share_M = random.random(len(tokens_M))
        drawn_M = random.integers(self.vocabulary, size=len(tokens_M))
        masked_M = np.where(share_M < MASKED, self.mask_token, tokens_M)
        return np.where((share_M >= MASKED) & (share_M < MASKED + DRAWN), drawn_M, masked_M)
