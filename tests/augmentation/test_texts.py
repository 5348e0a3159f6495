"""Texts are divided into words and joined again; what stands between words stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdray.augmentation.texts import changed_cell, words_of
from tests.augmentation.tiny import TEXTS, WORDS

CELLS = st.text() | st.sampled_from(TEXTS) | st.lists(st.text(min_size=1))


@given(CELLS)
def test_a_cell_of_its_own_words_is_the_cell(cell: str | list[str]) -> None:
    words = words_of(cell)
    assert changed_cell(cell, words, list(words.texts)) == cell


GAPS = ["", " ", "-", "/", ", ", "\n", "  "]


@given(st.lists(st.tuples(st.sampled_from([*WORDS, "👩‍🚀", "7"]), st.sampled_from(GAPS)), min_size=1), st.data())
def test_words_that_are_left_stay_words(parts: list[tuple[str, str]], data: st.DataObject) -> None:
    text = "".join(map("".join, parts))
    words = words_of(text)
    new = data.draw(st.permutations(words.texts))
    left = data.draw(st.lists(st.booleans(), min_size=len(words), max_size=len(words)).filter(any))
    joined = changed_cell(text, words, [word if stays else None for word, stays in zip(new, left, strict=True)])
    assert list(words_of(joined).texts) == [word for word, stays in zip(new, left, strict=True) if stays]


@pytest.mark.parametrize(
    ("text", "deleted", "expected"),
    [
        ("a good, old film.", {1}, "a, old film."),
        ("a good, old film.", {2}, "a good old film."),
        ("a good, old film.", {0, 1, 2}, "old film."),
        ("a good, old film.", {3, 4, 5}, "a good,"),
        (" a  good\tfilm\n", {1}, " a\tfilm\n"),
        (" a  good\tfilm\n", {0}, " good\tfilm\n"),
        ("电影好", {1}, "电好"),
        ("a (good) film", {1}, "a good) film"),
        ("an old film.", {2}, "an old."),
        ("well-known", {1}, "well known"),
        ("it's 👩‍🚀 here", {1, 2}, "it here"),
    ],
)
def test_deleted_words_leave_one_gap(text: str, deleted: set[int], expected: str) -> None:
    words = words_of(text)
    new = [None if number in deleted else word for number, word in enumerate(words.texts)]
    assert changed_cell(text, words, new) == expected


def test_a_list_has_its_words_whatever_is_in_them() -> None:
    cell = ["New York", "", "don't", "👩‍🚀"]
    assert words_of(cell).texts == tuple(cell)
    assert changed_cell(cell, words_of(cell), ["x", "", None, "y"]) == ["x", "", "y"]
