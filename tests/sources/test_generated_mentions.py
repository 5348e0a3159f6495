"""Generated mentions: tags that follow from the words, and an annotator who is sometimes wrong."""

from itertools import chain

import pytest

from kdray.data.rows import SPLITS
from kdray.sources.generated.mentions import NAMES, NOUNS, OPENINGS, TYPES, GeneratedMentions

SMALL = GeneratedMentions(train_rows=1500, validation_rows=1500, test_rows=50)
TRUE = SMALL.rows("validation")


def mentions(tokens: list[str], tags: list[str]) -> list[tuple[str, str]]:
    """The names of a sentence in lower case, each with its type."""
    found: list[tuple[list[str], str]] = []
    for token, tag in zip(tokens, tags, strict=True):
        if tag.startswith("B-"):
            found.append(([], tag[2:]))
        if tag != "O":
            found[-1][0].append(token.lower())
    return [(" ".join(words), kind) for words, kind in found]


@pytest.mark.parametrize("split", SPLITS)
def test_every_word_has_a_tag_and_every_name_begins_with_b(split: str) -> None:
    rows = SMALL.rows(split)  # type: ignore[arg-type]
    for tokens, tags in zip(rows["tokens"], rows["tags"], strict=True):
        assert len(tokens) == len(tags)
        for before, tag in zip(["O", *tags], tags, strict=False):
            assert not tag.startswith("I-") or before[2:] == tag[2:], tags
    expected = {"O", *(f"{place}-{kind}" for place in "BI" for kind in TYPES)}
    assert set(chain.from_iterable(rows["tags"])) == expected
    assert all(token and not set(token) & set(" \t\n") for token in chain.from_iterable(rows["tokens"]))


def test_every_name_may_be_of_every_type_and_some_are_plain_words_too() -> None:
    types: dict[str, set[str]] = {}
    outside: set[str] = set()
    for tokens, tags in zip(TRUE["tokens"], TRUE["tags"], strict=True):
        for name, kind in mentions(tokens, tags):
            types.setdefault(name, set()).add(kind)
        outside |= {token.lower() for token, tag in zip(tokens, tags, strict=True) if tag == "O"}
    assert all(types[name.lower()] == set(TYPES) for name in NAMES)
    openings = {word.lower() for opening in OPENINGS for word in opening.split()}
    both = {name.lower() for name in NAMES} & outside
    assert both
    assert both <= openings


def test_a_definition_gives_the_type_that_it_does_not_deny() -> None:
    types = {noun: kind for kind, nouns in NOUNS.items() for noun in nouns}
    compared = 0
    for tokens, tags in zip(TRUE["tokens"], TRUE["tags"], strict=True):
        text = " ".join(tokens).lower()
        for name, kind in mentions(tokens, tags):
            _, found, rest = text.partition(f"{name} is not a ")
            if found and " but a " in rest:
                denied, said = rest.split()[0], rest.split()[3]
                assert (types[said] == kind, types[denied] == kind) == (True, False), text
                compared += 1
    assert compared > 10


def test_a_cue_gives_its_type_to_all_names_of_a_list() -> None:
    compared = 0
    for tokens, tags in zip(TRUE["tokens"], TRUE["tags"], strict=True):
        text = " ".join(tokens).lower()
        for ending, kind in (("in tears", "person"), ("by train", "place"), ("unread", "work")):
            names = text.partition("we left ")[2].partition(f" {ending}")
            if names[1] and " and " in names[0] and "we left" not in names[0]:
                types, listed = dict(mentions(tokens, tags)), names[0].replace(" and ", " , ").split(" , ")
                assert [types[name] for name in listed] == [kind] * len(listed), text
                compared += 1
    assert compared > 10


def test_a_repeated_name_has_one_type() -> None:
    repeated = 0
    for tokens, tags in zip(TRUE["tokens"], TRUE["tags"], strict=True):
        names = mentions(tokens, tags)
        assert len(dict(names)) == len(set(names))
        repeated += len(names) - len(set(names))
    assert repeated > 300


def test_a_third_of_the_sentences_is_in_lower_case() -> None:
    lower = sum(all(token == token.lower() for token in tokens) for tokens in TRUE["tokens"])
    assert 0.28 < lower / 1500 < 0.40


def test_a_less_sure_annotator_is_wrong_more_often_and_misses_names() -> None:
    def errors(sureness: float) -> tuple[float, int]:
        read = SMALL.model_copy(update={"sureness": sureness}).rows("train")
        true = SMALL.model_copy(update={"sureness": 1000.0}).rows("train")
        assert read["tokens"] == true["tokens"]
        pairs = list(zip(chain.from_iterable(read["tags"]), chain.from_iterable(true["tags"]), strict=True))
        names = [(tag, right) for tag, right in pairs if right != "O"]
        assert all(tag == "O" for tag, right in pairs if right == "O")
        return sum(tag != right for tag, right in names) / len(names), sum(tag == "O" for tag, _ in names)

    (few, _), (some, missed), (many, _) = errors(3.0), errors(1.6), errors(0.8)
    assert 0.01 < few < some < many < 0.4
    assert missed
