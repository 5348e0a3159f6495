"""Every way changes some words of a text, by its own random numbers alone; each in its own manner."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import sampled_from

from kdray.augmentation.delete import Delete
from kdray.augmentation.lexicon import Lexicon
from kdray.augmentation.mask import Mask
from kdray.augmentation.neighbours import Neighbours
from kdray.augmentation.ngrams import LONGEST, NGrams
from kdray.augmentation.order import Order
from kdray.augmentation.texts import words_of
from kdray.augmentation.vocabulary import with_case_of
from kdray.augmentation.way import NewWords, Way, WayInputs, draw_but_one, draw_places
from kdray.augmentation.ways import WAYS
from kdray.data.words import Words
from kdray.errors import SpecError
from kdray.models.fresh import word_tokenizer
from kdray.models.pretrained import Pretrained
from tests.augmentation.test_vocabulary import word_piece
from tests.augmentation.tiny import TEXTS, WORDS, make_way, random_of

SENTENCES = st.lists(sampled_from([*WORDS, "Film", "GOOD", "unheard", "...", "👩‍🚀", "7"]), max_size=20)
SEEDS = st.integers(0, 1000)


@pytest.fixture(scope="session", params=list(WAYS))
def way(request: pytest.FixtureRequest, tiny_teacher: Pretrained, tiny_masked_lm: Pretrained) -> Way:
    return make_way(request.param, tiny_teacher, tiny_masked_lm)


def change(way: Way, words: Sequence[str], seed: object = 0) -> NewWords:
    (new,) = way.change([Words.of_list(list(words))], [random_of(seed)])
    return new


@given(SENTENCES, SEEDS)
def test_a_changed_text_has_a_place_for_each_word_and_at_least_one_word(way: Way, words: list[str], seed: int) -> None:
    new = change(way, words, seed)
    assert len(new) == len(words)
    assert any(word is not None for word in new) == bool(words)
    assert "" not in new
    if way.keeps_words:
        assert None not in new
    assert change(way, words, seed) == new


@given(st.lists(sampled_from(WORDS), min_size=2, max_size=20, unique=True), SEEDS)
def test_a_text_of_several_known_words_is_changed(way: Way, words: list[str], seed: int) -> None:
    assert change(way, words, seed) != words


def test_a_text_is_changed_in_the_same_way_beside_any_other_texts(way: Way) -> None:
    texts = [words_of(text) for text in TEXTS]
    together = way.change(texts, [random_of(number) for number in range(len(texts))])
    for number, words in enumerate(texts):
        assert way.change([words], [random_of(number)]) == [together[number]]
    backwards = way.change(texts[::-1], [random_of(number) for number in range(len(texts))[::-1]])
    assert backwards[::-1] == together


def test_another_seed_gives_another_text(way: Way) -> None:
    assert len({tuple(change(way, WORDS[:12], seed)) for seed in range(20)}) > 10


@pytest.mark.parametrize("name", ["mask", "neighbours", "masked_lm", "order", "delete"])
def test_the_share_says_how_many_words_change(name: str, tiny_teacher: Pretrained, tiny_masked_lm: Pretrained) -> None:
    words = WORDS[:30] * 10

    def changes(share: float | None) -> int:
        new = change(make_way(name, tiny_teacher, tiny_masked_lm, share), words)
        return sum(before != after for before, after in zip(words, new, strict=True))

    one_changes = 2 if name == "order" else 1
    assert changes(1e-9) == one_changes
    assert changes(0.03) < changes(0.3)
    assert changes(None) == changes(WAYS[name].default_share)


@given(SENTENCES, SEEDS)
def test_masked_words_are_the_mask_token_and_some_word_is_left(words: list[str], seed: int) -> None:
    way = _mask_way("[MASK]", "[UNK]")
    way.share = 0.9
    new = change(way, words, seed)
    assert all(after in (before, "[MASK]") for before, after in zip(words, new, strict=True))
    assert not words or "[MASK]" not in new or new.count("[MASK]") < len(words)


def test_words_are_masked_by_the_unknown_token_where_there_is_no_mask_token() -> None:
    assert set(change(_mask_way(None, "[UNK]"), ["one", "two"])) in ({"one", "[UNK]"}, {"[UNK]", "two"})


@pytest.mark.parametrize("unknown", [None, "<end>"])
def test_a_tokenizer_without_a_token_for_masks_is_refused(unknown: str | None) -> None:
    with pytest.raises(
        SpecError, match=r"augmentation\.ways: mask replaces .* the tokenizer .* has neither\. Leave out mask"
    ):
        _mask_way(None, unknown)


@given(SENTENCES, SEEDS)
def test_an_ngram_is_a_few_words_in_a_row(words: list[str], seed: int) -> None:
    new = change(NGrams(_no_inputs()), words, seed)
    left = [place for place, word in enumerate(new) if word is not None]
    assert all(behind == before + 1 for before, behind in pairwise(left))
    assert [new[place] for place in left] == [words[place] for place in left]
    if len(words) > 1:
        assert 1 <= len(left) <= min(LONGEST, len(words) - 1)


@given(SENTENCES, SEEDS)
def test_the_order_of_the_words_is_all_that_changes(words: list[str], seed: int) -> None:
    assert sorted(map(str, change(Order(_no_inputs()), words, seed))) == sorted(words)


@pytest.mark.parametrize("seed", range(10))
def test_equal_words_are_not_exchanged(seed: int) -> None:
    words = ["very", "very", "very", "good"]
    assert change(Order(_no_inputs(1e-9)), words, seed) == ["very", "very", "good", "very"]


@given(SENTENCES, SEEDS, st.floats(0.01, 1))
def test_deletion_leaves_words_as_they_are(words: list[str], seed: int, share: float) -> None:
    new = change(Delete(_no_inputs(share)), words, seed)
    assert all(after in (before, None) for before, after in zip(words, new, strict=True))
    assert any(after is not None for after in new) == bool(words)


@given(SENTENCES, SEEDS)
def test_neighbours_are_other_known_words(tiny_neighbours: Way, words: list[str], seed: int) -> None:
    for before, after in zip(words, change(tiny_neighbours, words, seed), strict=True):
        assert after is not None
        if after != before:
            assert before.lower() in WORDS
            assert after.lower() in WORDS
            assert after.lower() != before.lower()
            assert after == with_case_of(before, after.lower())


def test_neighbours_take_the_case_of_a_word(tiny_neighbours: Way) -> None:
    found = [change(tiny_neighbours, ["Film", "GOOD"], seed) for seed in range(30)]
    titles, capitals = ({str(word) for word in column if str(word).isascii()} for column in zip(*found, strict=True))
    assert all(word[0].isupper() and word[1:] == word[1:].lower() for word in titles)
    assert all(word.isupper() for word in capitals)
    assert min(len(titles), len(capitals)) > 3


def test_a_word_in_another_case_is_no_neighbour() -> None:
    tokenizer = word_piece()
    lexicon = _Vocabulary(tokenizer, np.eye(len(tokenizer), dtype=np.float32))
    found = {change(Neighbours(WayInputs(lexicon)), ["film"], seed)[0] for seed in range(30)}
    assert found == {"a", "act", "é"}


@pytest.fixture(scope="session")
def tiny_neighbours(tiny_teacher: Pretrained, tiny_masked_lm: Pretrained) -> Way:
    return make_way("neighbours", tiny_teacher, tiny_masked_lm, share=0.6)


def test_words_that_are_no_single_tokens_stay(tiny_neighbours: Way) -> None:
    words = ["unheard", "7", "...", "👩‍🚀", "[MASK]", "[CLS]"]
    assert change(tiny_neighbours, words) == words


def test_words_are_looked_up_again_after_many_texts(
    tiny_teacher: Pretrained, tiny_masked_lm: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = make_way("neighbours", tiny_teacher, tiny_masked_lm)
    first = change(way, WORDS)
    monkeypatch.setattr("kdray.augmentation.neighbours.MOST_WORDS", 3)
    assert change(way, WORDS) == change(way, WORDS) == first


@given(st.lists(st.integers()), st.floats(0, 1), SEEDS)
def test_at_least_one_place_is_drawn(places: list[int], share: float, seed: int) -> None:
    drawn = draw_places(places, share, random_of(seed))
    assert len(drawn) >= min(1, len(places))
    assert set(drawn) <= set(places)


@given(st.integers(0, 30), st.floats(0, 1), SEEDS)
def test_not_all_places_are_drawn(count: int, share: float, seed: int) -> None:
    drawn = draw_but_one(count, share, random_of(seed))
    assert len(drawn) == len(set(drawn))
    assert set(drawn) <= set(range(count))
    assert min(1, count // 2) <= len(drawn) <= max(count - 1, 0)


class _Vocabulary(Lexicon):
    """A lexicon with a tokenizer, a table of embeddings, and no model."""

    def __init__(self, tokenizer: Any, table_VxH: np.ndarray | None = None) -> None:
        self.__dict__ |= {"tokenizer": tokenizer, "embeddings": table_VxH}


def _mask_way(mask: str | None, unknown: str | None) -> Mask:
    tokenizer = word_tokenizer([" ".join(WORDS)], 100, 64)
    tokenizer.mask_token, tokenizer.unk_token, tokenizer.eos_token = mask, unknown, "<end>"
    return Mask(WayInputs(_Vocabulary(tokenizer)))


def _no_inputs(share: float | None = None) -> WayInputs:
    return WayInputs(Lexicon(Pretrained(Path("nowhere"), "")), share)
