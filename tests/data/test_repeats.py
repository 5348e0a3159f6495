"""Exact and near repeats of texts, compared with sets of trigrams in plain Python."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kdray.data import repeats as module
from kdray.data.repeats import NEAR, Columns, Example, Repeats, repeats

LONG = "the storm closed every road between the old harbour and the northern villages of the island for two whole days"
"""Twenty words, so eighteen trigrams."""


def repeats_of(texts: Sequence[Any], *others: Sequence[Any]) -> Repeats:
    return repeats({"text": texts}, [{"text": other} for other in others])


def kind(text: Any, other: Any) -> str:
    """How `text` repeats `other`; of tuples, each is a pair."""
    columns: list[Columns] = [
        {"text": [row[0]], "pair": [row[1]]} if isinstance(row, tuple) else {"text": [row]} for row in (text, other)
    ]
    found = repeats(columns[0], columns[1:])
    assert not (found.exact_N & found.near_N).any()
    if found.exact_N[0]:
        return "exact"
    return "near" if found.near_N[0] else "none"


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("A  warm\tfilm \n", " a warm film"),
        ("Caf\u00e9", "CAFE\u0301"),
        ("\uff26\uff35\uff2c\uff2c width", "full width"),  # the wide letters of Japanese fonts
        ("STRASSE", "stra\u00dfe"),
        ("a\u00a0b\u3000c", "a b c"),
        ("", " \n"),
        ("!", "!"),
        (["A", "b"], ["a", "B"]),
    ],
)
def test_white_space_case_and_unicode_form_do_not_matter(text: Any, other: Any) -> None:
    assert kind(text, other) == "exact"


@pytest.mark.parametrize(
    ("text", "other", "expected"),
    [
        (f"{LONG}!!", f"({LONG})", "near"),
        (f"well {LONG}", LONG, "near"),
        (LONG.replace("storm", "snow"), LONG, "near"),  # 16 of 20 trigrams, which is the threshold itself
        (LONG.replace("every", "each"), LONG, "none"),  # 15 of 21
        (" ".join(reversed(LONG.split())), LONG, "none"),
        (f"{LONG} {LONG.replace('the', 'a')}", LONG, "none"),  # contains it, and has as much again
        ("happy cake day", "Happy cake day!", "near"),
        ("thank you", "thank you!", "none"),  # no trigram
        (
            "a black and white dog is running through the field",
            "a black and white dog is running through the grass",
            "none",
        ),
        ("今年は例年より寒い冬になりそうです", "今年は例年より寒い冬になりそうです。", "near"),
        ("今年は例年より寒い冬になりそうです", "今年は例年より暑い夏になりそうです", "none"),
        ("वह हर सुबह नदी के किनारे टहलने जाती है।", "वह हर सुबह नदी के किनारे टहलने जाती है", "near"),
        ("वह हर सुबह नदी के किनारे टहलने जाती है", "वह हर शाम नदी के किनारे टहलने जाती है", "none"),
        (LONG.split(), [*LONG.split(), "."], "near"),
    ],
)
def test_a_near_repeat_shares_most_trigrams(text: Any, other: Any, expected: str) -> None:
    assert kind(text, other) == kind(other, text) == expected


@pytest.mark.parametrize(
    ("text", "other", "expected"),
    [
        ((LONG, "Two days"), (LONG.upper(), "two  days"), "exact"),
        ((LONG, "two days"), (f"{LONG}.", "two days"), "near"),
        ((LONG, f"it says {LONG}"), (f"{LONG}.", f"it said {LONG}"), "near"),
        ((LONG, "two days"), (LONG, "two nights"), "none"),
        ((LONG, "two days"), (LONG, "two days!"), "none"),  # the second text is too short for a near repeat
        ((LONG, "a b c d"), ("a b c d", LONG), "none"),
        (("a", "b c"), ("a b", "c"), "none"),
        (("", LONG), (LONG, ""), "none"),
    ],
)
def test_a_pair_repeats_a_pair_by_both_texts(text: Any, other: Any, expected: str) -> None:
    assert kind(text, other) == expected


def test_both_texts_of_a_pair_repeat_the_same_row() -> None:
    found = repeats(
        {"text": [f"{LONG}!"], "pair": ["is it so?"]},
        [{"text": [LONG, "is it so"], "pair": ["was it so?", "is it so?"]}, {"text": ["no"], "pair": ["is it so?"]}],
    )
    assert not found.exact_N.any()
    assert not found.near_N.any()


def random_texts(rows: int, seed: int) -> list[str]:
    """Texts of few different words, so that many of them share trigrams and some are repeats."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(list("abAB,"), random.integers(0, 9))) for _ in range(rows)]


def reference(texts: list[str], other: list[str]) -> tuple[list[bool], list[bool]]:
    def trigrams(text: str) -> set[tuple[str, ...]]:
        words = text.replace(",", " ").lower().split()
        return {tuple(words[start : start + 3]) for start in range(len(words) - 2)}

    def is_near(one: set[tuple[str, ...]], two: set[tuple[str, ...]]) -> bool:
        return bool(one and two) and len(one & two) / len(one | two) >= NEAR

    known, sets = {text.lower() for text in other}, [trigrams(text) for text in other]
    exact = [text.lower() in known for text in texts]
    near = [any(is_near(trigrams(text), each) for each in sets) for text in texts]
    return exact, [not one and two for one, two in zip(exact, near, strict=True)]


@pytest.mark.parametrize("sizes", [{}, {"BLOCK_CELLS": 1}, {"BLOCK_ROWS": 7, "BLOCK_CELLS": 100, "FIRST_ROWS": 11}])
@pytest.mark.parametrize("convert", [list, pa.array, lambda texts: pa.chunked_array([texts[:7], texts[7:]])])
def test_the_rows_found_are_those_of_sets_of_trigrams(
    monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int], convert: Any
) -> None:
    for name, size in sizes.items():
        monkeypatch.setattr(module, name, size)
    texts, other = random_texts(300, seed=0), random_texts(60, seed=1)
    found = repeats_of(convert(texts), convert(other[:20]), [], convert(other[20:]))
    exact, near = reference(texts, other)
    assert found.exact_N.tolist() == exact
    assert found.near_N.tolist() == near
    assert 10 < sum(exact) < 290
    assert 10 < sum(near) < 290


@pytest.mark.parametrize("first_rows", [100, 2])
def test_the_examples_are_the_first_repeats_and_say_what_they_repeat(
    monkeypatch: pytest.MonkeyPatch, first_rows: int
) -> None:
    monkeypatch.setattr(module, "FIRST_ROWS", first_rows)
    texts = ["new", f"{LONG}!", "Yes", f"{LONG}?", "no"]
    found = repeats_of(texts, ["no", "x y z"], [f"{LONG} .", "yes", "YES", f"{LONG}"])
    assert found.exact == Example("Yes", "yes", 1)
    assert found.near == Example(f"{LONG}!", f"{LONG} .", 1)
    pair = repeats({"text": [["A", "b"]], "pair": ["c"]}, [{"text": [["a", "B"]], "pair": ["C"]}])
    assert pair.exact == Example("A b / c", "a B / C", 0)


@pytest.mark.parametrize(("texts", "others"), [([], [["a"]]), (["a", ""], []), (["a"], [[]]), ([], [])])
def test_without_rows_nothing_repeats(texts: list[str], others: list[list[str]]) -> None:
    found = repeats_of(texts, *others)
    assert found.exact_N.tolist() == found.near_N.tolist() == [False] * len(texts)
    assert found.exact is None
    assert found.near is None
