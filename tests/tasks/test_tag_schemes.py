"""Schemes of tags: recognised from names and sequences, checked, and listed completely."""

import numpy as np
import pytest

from kdray.tasks.tag_schemes import BILOU, BIO, BIOES, IOB1, PLAIN, Scheme, TagSet, recognise, wrong_tags


def flat(sentences: list[list[str]], names: list[str] | None = None) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The tags of sentences as the functions read them: names, numbers, and starts."""
    names = names or sorted({tag for sentence in sentences for tag in sentence})
    numbers = np.array([names.index(tag) for sentence in sentences for tag in sentence], np.int64)
    return names, numbers, np.cumsum([0, *map(len, sentences)])


@pytest.mark.parametrize(
    ("sentences", "scheme"),
    [
        ("O B-per I-per O", BIO),
        ("B-creative-work I-creative-work B-creative-work", BIO),
        ("O B-per O", BIO),
        ("O I-per I-per O", IOB1),
        ("O I-per B-per I-per I-loc | I-per O", IOB1),
        ("I-per | | I-loc", IOB1),
        ("I-per | I-per | O B-loc", IOB1),
        ("B-per I-loc", BIO),  # as many words against each of them
        ("B-per O B-loc O I-per", BIO),
        ("I-per O I-loc O B-per", IOB1),
        ("B-per E-per O S-loc", BIOES),
        ("S-loc O", BIOES),
        ("B-per I-per L-per O", BILOU),
        ("U-per O", BILOU),
        ("DET NOUN VERB .", PLAIN),
        ("NN -LRB- V-P ` O", PLAIN),
        ("V-P N-P NN VB JJ", PLAIN),
        ("O O", PLAIN),
        ("B-per I-per X-loc O", BIO),
        ("B-per PER O", BIO),
    ],
)
def test_recognise(sentences: str, scheme: Scheme) -> None:
    assert recognise(*flat([sentence.split() for sentence in sentences.split("|")])) is scheme


def test_tags_that_mark_ends_only_are_refused() -> None:
    with pytest.raises(ValueError, match=r"where spans end, but not where they begin \(IOE\); write them as BIO"):
        recognise(*flat([["I-per", "E-per", "O"]]))


@pytest.mark.parametrize(
    ("scheme", "tag", "problem"),
    [
        (BIO, "B-", "tag 'B-' has no type"),
        (BIO, "B", "tag 'B' has no type"),
        (BIO, "PER", "tag 'PER' has no prefix"),
        (BIO, "", "tag '' has no prefix"),
        (BIO, "b-per", "tag 'b-per' has no prefix"),
        (BIO, "S-per", "tag 'S-per' has the prefix S-; the other tags are in the scheme BIO: O, or B-, I- and a type"),
        (BIOES, "L-per", "tag 'L-per' has the prefix L-; the other tags are in the scheme BIOES: O, or B-, I-, E-, S-"),
    ],
)
def test_a_tag_outside_of_the_scheme_is_described(scheme: Scheme, tag: str, problem: str) -> None:
    found = wrong_tags(scheme, ["O", "B-per", tag, "I-a-b"])
    assert list(found) == [tag]
    assert found[tag].startswith(problem)
    with pytest.raises(ValueError, match="tag "):
        TagSet(scheme, ("O", tag))


def test_plain_tags_are_never_wrong() -> None:
    assert wrong_tags(PLAIN, ["NN", "B-", "O", ""]) == {}


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        (BIO, "O B-a-b I-a-b B-c I-c"),
        (IOB1, "O B-a-b I-a-b B-c I-c"),
        (BIOES, "O B-a-b I-a-b E-a-b S-a-b B-c I-c E-c S-c"),
        (BILOU, "O B-a-b I-a-b L-a-b U-a-b B-c I-c L-c U-c"),
        (PLAIN, "a-b c"),
    ],
)
def test_all_tags_of_the_types_are_listed(scheme: Scheme, tags: str) -> None:
    assert scheme.complete(["c", "a-b", "c"]) == tuple(tags.split())
    listed = TagSet(scheme, scheme.complete(["c", "a-b"]))
    assert listed.types == ("a-b", "c")


def test_tags_may_be_numbered_in_any_order() -> None:
    tags = TagSet(BIO, ("I-per", "B-loc", "O", "B-per"))
    assert tags.types == ("loc", "per")
    assert tags.tag_types.tolist() == [1, 0, -1, 1]
