"""A tokenizer of the words of the texts."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from tokenizers import Tokenizer

from kdray.errors import SpecError
from kdray.vocabulary.words import texts_to_count, word_tokenizer, words_of

SPECIAL = ["<pad>", "<unk>"]


def make(texts: list[str], **changes: Any) -> Tokenizer:
    settings = {"lowercase": True, "minimum_count": 1, "limit": None, **changes}
    return word_tokenizer(texts, SPECIAL, "<unk>", **settings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's good.", ["it", "'s", "good", "."]),
        ("I don't, CAN'T and won\u2019t", ["i", "do", "n't", ",", "ca", "n't", "and", "wo", "n\u2019t"]),
        ("do n't", ["do", "n't"]),
        ("nt isn'ty n'th", ["nt", "isn", "'", "ty", "n", "'", "th"]),
        ("3.14 U.S. caf\u00e9 #tag", ["3.14", "u.s.", "caf\u00e9", "#tag"]),
    ],
)
def test_words_are_divided_as_in_treebanks(text: str, words: list[str]) -> None:
    tokenizer = make([text])
    assert tokenizer.encode(text).tokens == words
    # Everything is in the JSON.
    assert Tokenizer.from_str(tokenizer.to_str()).encode(text).tokens == words


def test_frequent_words_have_an_id() -> None:
    tokenizer = make(["a b b c", "c b d"], minimum_count=2)
    assert tokenizer.get_vocab() == {"<pad>": 0, "<unk>": 1, "b": 2, "c": 3}
    assert tokenizer.encode("b a").ids == [2, 1]
    assert make(["a b b c", "c b d"], limit=3).get_vocab().keys() == {*SPECIAL, "b"}


def test_capitals_stay_if_the_source_reads_them() -> None:
    assert make(["Film film"], lowercase=False).encode("Film film").tokens == ["Film", "film"]


def test_words_are_listed_by_their_ids() -> None:
    tokenizer = make(["b a b"])
    assert words_of({"model": {"vocab": tokenizer.get_vocab()}}, SPECIAL) == ["b", "a"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"limit": 9}, r"student\.vocabulary: got 9, but the texts to train on have 3 words .* Allowed are 3 to 5"),
        ({"limit": 2}, r"student\.vocabulary: got 2, but .* 2 special tokens"),
        ({"minimum_count": 4}, r"student\.minimum_count: got 4, but no word"),
    ],
)
def test_an_impossible_vocabulary_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        make(["a b b c"], **changes)


class Text:
    """Rows with texts without labels, and a changed copy, which nobody may ask for."""

    labels, key, more_key = ("a",), "", None

    def blocks(self, split: str) -> Iterator[Mapping[str, Any]]:
        """The blocks."""
        assert split == "train"
        yield {"text": ["one two", ["three", "four"]], "pair": ["five", "six"]}
        yield {"text": ["seven"]}
        raise AssertionError("copies are expensive")


def test_texts_without_labels_count_and_copies_do_not() -> None:
    assert sorted(texts_to_count(Text())) == ["five", "one two", "seven", "six", "three four"]
