"""The words of a vocabulary that are a single token, for each kind of tokenizer."""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kdray.augmentation.vocabulary import single_tokens, whole_words, with_case_of
from kdray.models.fresh import word_tokenizer
from tests.augmentation.tiny import WORDS


def word_piece() -> Any:
    words = ["[UNK]", "[MASK]", "a", "film", "act", "##ing", "##or", ",", "3", "é", "[unused1]", "Film"]
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", mask_token="[MASK]")


def byte_level() -> Any:
    letters = sorted({*"afilmct", "Ġ"})
    merges = [("f", "i"), ("l", "m"), ("fi", "lm"), ("Ġ", "film"), ("Ġ", "a"), ("Ġa", "c"), ("Ġac", "t"), ("a", "c")]
    words = ["</s>", *letters, *(first + second for first, second in merges)]
    vocabulary = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def sentence_piece() -> Any:
    pieces = [("<unk>", 0.0), ("▁a", -1.0), ("▁film", -2.0), ("▁act", -2.0), ("ing", -2.0), ("film", -3.0), ("▁", -4.0)]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("好", -3.0)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        # Neither continuations, nor punctuation, nor numbers, nor special and unused tokens.
        (word_piece, {"a", "film", "act", "é", "Film"}),
        # The tokens without a space are read at the beginning of a text, or inside a word.
        (byte_level, {"film", "a", "ac", "act"}),
        # A word without a space before it is a token and the token of the space.
        (sentence_piece, {"a", "film", "act"}),
        (lambda: word_tokenizer([" ".join(WORDS)], 100, 64), set(WORDS)),
    ],
)
def test_whole_words(make: Callable[[], Any], expected: set[str]) -> None:
    tokenizer = make()
    words = whole_words(tokenizer, len(tokenizer))
    assert set(words.texts) == expected
    assert len(words.texts) == len(expected)
    assert list(words.ids) == sorted(words.ids)
    assert single_tokens(tokenizer, words.texts) == list(words.ids)


def test_tokens_without_an_embedding_are_no_words() -> None:
    assert whole_words(word_piece(), 4).texts == ("a", "film")


def test_the_tokens_of_words() -> None:
    tokenizer = word_piece()
    vocabulary = tokenizer.get_vocab()
    expected = [vocabulary["film"], None, vocabulary["act"], None]
    assert single_tokens(tokenizer, ["film", "acting", "act", "film act"]) == expected
    assert single_tokens(tokenizer, []) == []


def test_a_token_that_spans_two_words_is_none_of_them() -> None:
    pieces = [("<unk>", -9.0), ("▁a", -1.0), ("▁a▁film", -1.0), ("s", -1.0), ("▁film", -9.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Metaspace()
    assert single_tokens(PreTrainedTokenizerFast(tokenizer_object=tokenizer), ["films"]) == [None]


@pytest.mark.parametrize(
    ("word", "new", "expected"),
    [
        ("film", "movie", "movie"),
        ("Film", "movie", "Movie"),
        ("FILM", "movie", "MOVIE"),
        ("film", "Paris", "Paris"),
        ("I", "you", "You"),
        ("电", "影", "影"),
        ("3D", "movie", "MOVIE"),
    ],
)
def test_a_word_takes_the_case_of_the_word_that_it_replaces(word: str, new: str, expected: str) -> None:
    assert with_case_of(word, new) == expected
