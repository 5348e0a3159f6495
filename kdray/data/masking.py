"""Masking: which tokens of a text a masked language model has to guess, and what stands in their place.

As in BERT (Devlin et al. 2019, arXiv:1810.04805, section 3.1): of the chosen tokens 80 % become the mask token, 10 % a
token drawn from the vocabulary, and 10 % stay. Any token may be drawn, special ones included, as in BERT's code and in
the collator of transformers. Every row has a number of its own, its key, which decides all its draws: they depend on no
other row, and many rows are masked in one call.

Shapes: B rows, P places of all rows that may be masked, row after row, W words among them, M chosen places.
"""

from dataclasses import dataclass

import numpy as np

MASKED, DRAWN = 0.8, 0.1
"""The shares of the chosen tokens that become the mask token, and any token. The others stay."""
_DRAWS = 3
"""Random numbers of each place: which places are chosen, what happens to the token, and the token drawn."""
# The constants of SplitMix64.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))


def random_numbers(keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The random number at each place (from 0) of the stream of each key: uint64, in the shape of both together.

    The streams are those of SplitMix64: Steele, Lea and Flood (2014), "Fast splittable pseudorandom number generators".
    Unlike numpy's generators, it gives the numbers of many streams in one call: 32 rows of 126 tokens are masked in
    0.35 ms. With a generator for each row it took 1 ms, and to count the answers of a global batch took as long again.
    """
    state = np.atleast_1d(keys) + np.atleast_1d(places).astype(np.uint64) * _GAMMA + _GAMMA
    for shift, factor in _MIX:
        state = (state ^ (state >> shift)) * factor
    return np.asarray(state ^ (state >> np.uint64(31)))


def row_keys(*numbers: np.ndarray | int) -> np.ndarray:
    """The keys of rows (B, uint64): other ones wherever one of these numbers differs; each has one value or B."""
    keys = np.zeros(1, np.uint64)
    for number in numbers:
        keys = random_numbers(keys, np.asarray(number))
    return keys


@dataclass(frozen=True)
class Masking:
    """How the tokens of a text are masked."""

    share: float
    """The share of the tokens that is chosen, at least one."""
    mask_token: int
    vocabulary: int
    """Token ids are drawn from 0 to `vocabulary` - 1."""

    def wanted(self, counts_B: np.ndarray) -> np.ndarray:
        """The number of tokens to choose of rows with so many places (B); whole words can be some more."""
        return np.minimum(counts_B, np.maximum(1, np.rint(self.share * counts_B).astype(np.int64)))

    def choose(self, keys_B: np.ndarray, counts_B: np.ndarray, begins_P: np.ndarray | None = None) -> np.ndarray:
        """The chosen ones of the places of rows with these keys and so many places each, in ascending order (M).

        With `begins_P`, which says where a word begins, whole words are chosen until a row has enough tokens. Without
        it, each place is a word. The first place of a row always begins one: a block may begin within a word.
        """
        starts_B = np.cumsum(counts_B) - counts_B
        is_begin_P = np.ones(counts_B.sum(), bool) if begins_P is None else begins_P.astype(bool)
        is_begin_P[starts_B[counts_B > 0]] = True
        first_W = np.flatnonzero(is_begin_P)
        sizes_W = np.diff(first_W, append=len(is_begin_P))
        row_W = np.repeat(np.arange(len(counts_B)), counts_B)[first_W]
        random_W = random_numbers(keys_B[row_W], _DRAWS * (first_W - starts_B[row_W]))
        # One number for a row and a draw: numpy sorts by two columns much more slowly. The width of the draw is fixed,
        # so that the order of equal draws does not depend on the other rows.
        order_W = np.argsort(row_W.astype(np.uint64) << np.uint64(32) | random_W >> np.uint64(32), kind="stable")
        sorted_sizes_W, sorted_row_W = sizes_W[order_W], row_W[order_W]
        before_W = np.cumsum(sorted_sizes_W) - sorted_sizes_W - starts_B[sorted_row_W]
        is_chosen_W = np.zeros(len(first_W), bool)
        is_chosen_W[order_W] = before_W < self.wanted(counts_B)[sorted_row_W]
        return np.flatnonzero(np.repeat(is_chosen_W, sizes_W))

    def mask(
        self, keys_B: np.ndarray, counts_B: np.ndarray, tokens_P: np.ndarray, begins_P: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The chosen places (M), as `choose` gives them, and what stands there instead of these tokens (M)."""
        chosen_M = self.choose(keys_B, counts_B, begins_P)
        starts_B = np.cumsum(counts_B) - counts_B
        row_M = np.searchsorted(starts_B, chosen_M, side="right") - 1
        place_M = _DRAWS * (chosen_M - starts_B[row_M])
        share_M, drawn_M = (_uniform(random_numbers(keys_B[row_M], place_M + draw)) for draw in range(1, _DRAWS))
        masked_M = np.where(share_M < MASKED, self.mask_token, tokens_P[chosen_M])
        is_drawn_M = (share_M >= MASKED) & (share_M < MASKED + DRAWN)
        return chosen_M, np.where(is_drawn_M, (drawn_M * self.vocabulary).astype(np.int64), masked_M)


def _uniform(numbers: np.ndarray) -> np.ndarray:
    """Numbers from 0 to 1, without 1, of random numbers: their 53 upper bits, as numpy does."""
    return (numbers >> np.uint64(11)) * 2.0**-53
