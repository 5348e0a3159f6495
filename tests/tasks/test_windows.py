"""Words as sub-words: every word is answered once, at its first sub-word, whatever the tokenizer and its length."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, CanineTokenizer

from kdray.errors import SpecError, TeacherError
from kdray.tasks.windows import WordInputs, count_tokens, cut_windows, encode_words, load_word_tokenizer, spare_token
from tests.tasks.word_tokenizers import KINDS

LONGEST = 64
NOTHING = ("\u200b", "", "\x00")
"""Words that have no sub-words for some tokenizers."""
WORDS = ["the", "player", "don't", "3.14", "naïve", "New York", "@x", "unplayable" * 9, "日本", "🙂", *NOTHING]
SPARE = {"word_piece": 1, "roberta": 3, "gpt2": 0, "behind_a_splitter": 0, "unigram": 0}
"""The token that stands for them: [UNK], <unk>, <|end|>, the first one, <unk>."""


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, save in KINDS.items():
        save(folder / name)
    return {name: load_word_tokenizer(folder / name) for name in KINDS}


each_kind = pytest.mark.parametrize("kind", KINDS)
some_sentences = st.lists(st.lists(st.sampled_from(WORDS), max_size=40), max_size=4)


def answered_ids(found: WordInputs, sentence: int) -> list[int]:
    """The token at the place of each word of a sentence."""
    windows = [number for number, each in enumerate(found.sentences) if each == sentence]
    return [found.inputs["input_ids"][window][place] for window in windows for place in found.places[window]]


@each_kind
@given(sentences=some_sentences, max_length=st.integers(3, LONGEST))
def test_every_word_is_answered_once_at_its_first_sub_word(
    tokenizers: dict[str, Any], kind: str, sentences: list[list[str]], max_length: int
) -> None:
    tokenizer = tokenizers[kind]
    found = encode_words(tokenizer, sentences, max_length)
    assert found.sentences == sorted(found.sentences)
    assert set(found.sentences) == set(range(len(sentences)))
    for ids, places in zip(found.inputs["input_ids"], found.places, strict=True):
        assert 1 <= len(ids) <= max_length
        assert places == sorted(set(places))
        assert all(0 <= place < len(ids) for place in places)
    for number, words in enumerate(sentences):
        # A word alone gives the same sub-words as in the sentence.
        alone = [encode_words(tokenizer, [[word]], LONGEST) for word in words]
        assert answered_ids(found, number) == [answered_ids(each, 0)[0] for each in alone]


@each_kind
def test_windows_do_not_depend_on_each_other(tokenizers: dict[str, Any], kind: str) -> None:
    sentences = [["the", "player"] * 30, ["don't", "play"], [], ["naïve"] * 50]
    every = encode_words(tokenizers[kind], sentences, 16)
    alone = [encode_words(tokenizers[kind], [words], 16) for words in sentences]
    for name, windows in every.inputs.items():
        assert windows == [window for each in alone for window in each.inputs[name]]
    assert every.places == [places for each in alone for places in each.places]
    assert every.sentences == [number for number, each in enumerate(alone) for _ in each.sentences]


@each_kind
def test_short_sentences_are_encoded_as_by_transformers(tokenizers: dict[str, Any], kind: str) -> None:
    tokenizer = tokenizers[kind]
    sentences = [["the", "player", "don't", "play"], ["naïve", "New York", "."]]
    found = encode_words(tokenizer, sentences, LONGEST)
    expected = tokenizer(sentences, is_split_into_words=True)
    for name in found.inputs:
        assert found.inputs[name] == expected[name]
    assert set(found.inputs) == set(tokenizer.model_input_names) - {"attention_mask"}
    for number, places in enumerate(found.places):
        words = expected.word_ids(number)
        assert places == [words.index(word) for word in range(len(sentences[number]))]
    assert count_tokens(tokenizer, sentences) == [len(ids) for ids in expected["input_ids"]]


@each_kind
def test_a_sentence_without_words_is_one_window(tokenizers: dict[str, Any], kind: str) -> None:
    found = encode_words(tokenizers[kind], [[], ["the"], []], 8)
    assert found.sentences == [0, 1, 2]
    assert [len(places) for places in found.places] == [0, 1, 0]
    assert all(found.inputs["input_ids"])


@each_kind
def test_a_word_without_sub_words_is_answered(tokenizers: dict[str, Any], kind: str) -> None:
    tokenizer = tokenizers[kind]
    assert spare_token(tokenizer) == SPARE[kind]
    for word in NOTHING:
        found = encode_words(tokenizer, [["the", word, "player"]], LONGEST)
        the, nothing, player = answered_ids(found, 0)
        if not tokenizer([[word]], is_split_into_words=True, add_special_tokens=False)["input_ids"][0]:
            assert nothing == spare_token(tokenizer)
        assert [the, player] == answered_ids(encode_words(tokenizer, [["the", "player"]], LONGEST), 0)


@given(
    sizes=st.lists(st.integers(1, 9), max_size=60),
    room=st.integers(1, 40),
)
def test_words_have_a_quarter_of_a_window_on_both_sides(sizes: list[int], room: int) -> None:
    firsts = [sum(sizes[:word]) for word in range(len(sizes))]
    size, largest = sum(sizes), max(sizes, default=0)
    windows = cut_windows(firsts, size, room)
    assert [word for window in windows for word in range(window.first_word, window.end_word)] == list(range(len(sizes)))
    for window in windows:
        assert window.end - window.begin <= room
        assert window.begin == 0 or window.begin in firsts
        for word in range(window.first_word, window.end_word):
            first, end = firsts[word], firsts[word] + sizes[word]
            assert window.begin <= first < window.end
            # A window begins with a complete word; a long word may leave less than a quarter for the others.
            missing = max(0, room // 4 - (first - window.begin))
            assert window.begin == 0 or missing < largest
            missing = max(0, room // 4 - (window.end - end))
            assert window.end == size or missing < largest
    for before, behind in pairwise(windows):
        assert before.begin < behind.begin


def test_windows_of_a_long_sentence() -> None:
    windows = cut_windows(list(range(100)), 100, 40)
    assert [(window.begin, window.end) for window in windows] == [(0, 40), (20, 60), (40, 80), (60, 100)]
    assert [(window.first_word, window.end_word) for window in windows] == [(0, 30), (30, 50), (50, 70), (70, 100)]


@pytest.mark.parametrize("kind", ["roberta", "gpt2", "behind_a_splitter"])
def test_a_word_of_a_list_is_encoded_as_in_a_text(tokenizers: dict[str, Any], kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path / "plain")
    plain = AutoTokenizer.from_pretrained(tmp_path / "plain")
    before, text = (plain(each, add_special_tokens=False)["input_ids"] for each in ("x", "x player"))
    expected = text[len(before) :]
    assert sub_words(plain, "player") != expected
    assert sub_words(tokenizers[kind], "player") == expected
    tokenizers[kind].save_pretrained(tmp_path / "saved")
    for load in (load_word_tokenizer, AutoTokenizer.from_pretrained):
        assert sub_words(load(tmp_path / "saved"), "player") == expected


def sub_words(tokenizer: Any, word: str) -> list[int]:
    ids: list[int] = tokenizer([[word]], is_split_into_words=True, add_special_tokens=False)["input_ids"][0]
    return ids


def test_a_tokenizer_without_places_is_refused() -> None:
    with pytest.raises(TeacherError, match="CanineTokenizer, does not say which tokens a word has"):
        encode_words(CanineTokenizer(), [["a"]], 16)


@pytest.mark.parametrize(("max_length", "message"), [(2, "adds 2 tokens .* at least 3"), (65, "at most 64 tokens")])
def test_a_length_out_of_range_is_refused(tokenizers: dict[str, Any], max_length: int, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        encode_words(tokenizers["word_piece"], [["a"]], max_length)
