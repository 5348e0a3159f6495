"""Which tokens are masked, and by what: shares, whole words, and that a row's masks depend on its key alone."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from kdray.data.masking import Masking, random_numbers, row_keys

MASK, VOCABULARY = 3, 50
COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=8)
KEYS = st.integers(0, 2**40)


@st.composite
def rows_of_words(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """The number of places of some rows (B), and where words begin (P)."""
    counts = draw(COUNTS)
    begins = draw(st.lists(st.booleans(), min_size=sum(counts), max_size=sum(counts)))
    return np.array(counts), np.array(begins, np.int8)


def masking(share: float = 0.15) -> Masking:
    return Masking(share, MASK, VOCABULARY)


def row_of(counts_B: np.ndarray, places: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(counts_B)), counts_B)[places]


@given(COUNTS, st.floats(0.01, 0.99), KEYS)
def test_the_share_of_each_row_is_chosen_and_at_least_one_place(counts: list[int], share: float, key: int) -> None:
    counts_B = np.array(counts)
    chosen_M = masking(share).choose(row_keys(key, np.arange(len(counts))), counts_B)
    assert (np.diff(chosen_M) > 0).all()
    found_B = np.bincount(row_of(counts_B, chosen_M), minlength=len(counts))
    assert found_B.tolist() == [min(count, max(1, round(share * count))) for count in counts]
    assert found_B.tolist() == masking(share).wanted(counts_B).tolist()


@given(rows_of_words(), st.floats(0.01, 0.99), KEYS)
def test_whole_words_are_chosen_until_a_row_has_enough(
    rows: tuple[np.ndarray, np.ndarray], share: float, key: int
) -> None:
    counts_B, begins_P = rows
    chosen_M = masking(share).choose(row_keys(key, np.arange(len(counts_B))), counts_B, begins_P)
    is_chosen_P = np.isin(np.arange(counts_B.sum()), chosen_M)
    ends_B = np.cumsum(counts_B)
    for count, wanted, end in zip(counts_B, masking(share).wanted(counts_B), ends_B, strict=True):
        part = slice(end - count, end)
        starts = [0, *(1 + np.flatnonzero(begins_P[part][1:])), count]
        words = [is_chosen_P[part][first:last] for first, last in pairwise(starts) if first < last]
        assert all(word.all() or not word.any() for word in words)
        sizes = [len(word) for word in words if word.any()]
        # Without the word that was chosen last, there are not enough.
        assert sum(sizes) >= wanted
        assert not sizes or sum(sizes) - max(sizes) < wanted


@given(rows_of_words(), KEYS)
def test_the_masks_of_a_row_do_not_depend_on_the_other_rows(rows: tuple[np.ndarray, np.ndarray], key: int) -> None:
    counts_B, begins_P = rows
    keys_B, tokens_P = row_keys(key, np.arange(len(counts_B))), np.arange(counts_B.sum()) % VOCABULARY
    together_M, tokens_M = masking().mask(keys_B, counts_B, tokens_P, begins_P)
    start = 0
    for row, count in enumerate(counts_B):
        part = slice(start, start + count)
        alone, tokens = masking().mask(keys_B[[row]], counts_B[[row]], tokens_P[part], begins_P[part])
        is_own_M = (together_M >= start) & (together_M < start + count)
        assert (alone + start).tolist() == together_M[is_own_M].tolist()
        assert tokens.tolist() == tokens_M[is_own_M].tolist()
        start += count


def test_of_the_chosen_tokens_80_percent_become_the_mask_10_percent_another_one_and_10_percent_stay() -> None:
    rows, places, token = 2000, 100, VOCABULARY + 7
    counts_B = np.full(rows, places)
    tokens_P = np.full(rows * places, token)
    chosen_M, masked_M = masking().mask(row_keys(1, np.arange(rows)), counts_B, tokens_P)
    assert len(chosen_M) == 15 * rows
    drawn_M = masked_M[masked_M < VOCABULARY]
    # The mask token may be drawn as well; the token that stays is none of the vocabulary.
    as_drawn = 15 * rows * 0.1 / VOCABULARY
    observed = [(masked_M == MASK).sum(), (drawn_M != MASK).sum(), (masked_M == token).sum()]
    expected = [15 * rows * 0.8 + as_drawn, 15 * rows * 0.1 - as_drawn, 15 * rows * 0.1]
    assert chisquare(observed, expected).pvalue > 0.001
    counts = np.bincount(drawn_M, minlength=VOCABULARY)
    assert chisquare(np.delete(counts, MASK)).pvalue > 0.001


def test_each_place_is_chosen_equally_often_and_independently_in_each_pass() -> None:
    rows, places = 4000, 20
    counts_B, found = np.full(rows, places), []
    for number in range(2):
        chosen_M = masking(0.25).choose(row_keys(number, np.arange(rows)), counts_B)
        found.append(np.isin(np.arange(rows * places), chosen_M))
        assert chisquare(np.bincount(chosen_M % places, minlength=places)).pvalue > 0.001
    # Of two independent choices of a quarter, a sixteenth is in both.
    assert abs((found[0] & found[1]).mean() - 1 / 16) < 0.004


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_random_numbers_are_those_of_splitmix64(seed: int) -> None:
    """The published algorithm in whole numbers of Python."""
    state, expected = seed, []
    for _ in range(5):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        mixed = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        expected.append(mixed ^ mixed >> 31)
    assert random_numbers(np.array([seed], np.uint64), np.arange(5)).tolist() == expected


def test_keys_differ_wherever_one_number_differs() -> None:
    keys = np.concatenate([row_keys(seed, number, np.arange(100)) for seed in range(3) for number in range(20)])
    assert len(np.unique(keys)) == 3 * 20 * 100


def test_the_published_first_numbers() -> None:
    """The first outputs of SplitMix64 from the seed 1234567, as its reference implementation prints them."""
    numbers = random_numbers(np.array([1234567], np.uint64), np.arange(3)).tolist()
    assert numbers == [6457827717110365317, 3203168211198807973, 9817491932198370423]
