"""Augmentation refuses settings that fit neither each other nor the task."""

import re
from typing import Any

import pytest

from kdray.augmentation.settings import Augmentation, check_ways
from kdray.augmentation.ways import WAYS
from kdray.errors import SpecError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"copies": 4}, "Augmentation.ways: 4 copies of each text are requested, but no way to change them"),
        ({"ways": "mask,neighbors"}, "Augmentation.ways: got 'neighbors'; did you mean 'neighbours'?"),
        ({"ways": ("mask", "mask")}, "name each way once"),
        ({"copies": -1}, "Augmentation.copies: got -1; input should be greater than or equal to 0"),
        ({"share": 0, "ways": "mask"}, "Augmentation.share: got 0"),
        ({"share": 1.5, "ways": "mask"}, "Augmentation.share: got 1.5"),
        ({"ways": "masked_lm"}, "Augmentation.model: masked_lm needs a masked language model"),
        ({"ways": "mask", "model": "roberta-base"}, "got 'roberta-base', but only masked_lm uses a model"),
        ({"ways": "mask", "revision": "main"}, "Augmentation.revision: it is that of model"),
        ({"copy": 2}, "Augmentation.copy: no such setting; did you mean 'copies'?"),
    ],
)
def test_wrong_settings_are_refused_with_a_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        Augmentation(**settings)


def test_the_default_adds_nothing() -> None:
    assert Augmentation().copies == 0
    assert not Augmentation().needs_masked_lm
    assert not Augmentation().needs_teacher


def test_ways_may_be_named_where_the_number_of_copies_is_searched() -> None:
    settings = Augmentation(ways="mask, ngrams")
    assert settings.ways == ("mask", "ngrams")
    assert settings.with_dotted({"copies": 8}).copies == 8


def test_a_command_line_changes_settings_by_their_dotted_names() -> None:
    with pytest.raises(SpecError, match=r"ways: got 'maks'; did you mean 'mask'\?"):
        Augmentation(ways="mask").with_dotted({"ways": "maks"})


def test_only_ways_that_keep_words_are_allowed_where_each_word_has_an_answer() -> None:
    every = Augmentation(ways=tuple(WAYS), model="any")
    check_ways(every, are_words=False)
    check_ways(Augmentation(ways=("mask", "neighbours", "masked_lm"), model="any"), are_words=True)
    with pytest.raises(SpecError) as caught:
        check_ways(every, are_words=True)
    assert str(caught.value) == (
        "augmentation.ways: got ngrams, order, delete, which changes the number or the order of the words, but this "
        "task has an answer for each word. Allowed: mask, neighbours, masked_lm."
    )
