"""Texts as words with their places, and spans of characters as tags."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdray.data.words import split_words, tags_of_spans

SPLIT = {
    "@paulwalk It's great.": "@paulwalk|It|'s|great|.",
    "I'M there, don't and l’homme d'O'Brien": "I|'M|there|,|don|'t|and|l|’|homme|d|'|O|'|Brien",
    "#NFL at 10:30pm: 3.14, 1,000.50 or 5% of $7.": "#NFL|at|10:30pm|:|3.14|,|1,000.50|or|5|%|of|$|7|.",
    "U.S. and e.g. v1.2, end.Next I.am": "U.S.|and|e.g.|v1.2|,|end|.|Next|I|.|am",
    "Berlin-based and/or 2019-2020 -- yes": "Berlin|-|based|and|/|or|2019|-|2020|--|yes",
    "(see http://x.org/a?b=1&c, www.kdray.io).": "(|see|http://x.org/a?b=1&c|,|www.kdray.io|)|.",
    "mail me@x.co.uk; a @ b # c": "mail|me@x.co.uk|;|a|@|b|#|c",
    "What?! No... AT&T": "What|?!|No|...|AT|&|T",
    "snake_case iPhone7 ½ ²": "snake_case|iPhone7|½|²",
    "हिन्दी می\u200cخواهم e\u0301te\u0301 so\u00adft": "हिन्दी|می\u200cخواهم|e\u0301te\u0301|so\u00adft",
    "中国人 is ファン ไทย": "中|国|人|is|フ|ァ|ン|ไ|ท|ย",
    "👩\u200d👩\u200d👧🇩🇪👍🏽!": "👩\u200d👩\u200d👧|🇩🇪|👍🏽|!",
    "a\u200bb\ufeffc\x00d\u2028e\xa0f\u202eg": "a|b|c|d|e|f|g",
}


@pytest.mark.parametrize("text", SPLIT)
def test_a_text_is_split_into_words(text: str) -> None:
    assert "|".join(split_words(text).texts) == SPLIT[text]


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b\x00"])
def test_a_text_without_visible_characters_has_no_words(text: str) -> None:
    assert len(split_words(text)) == 0
    assert tags_of_spans(text, split_words(text), []) == []


@given(st.text())
def test_words_are_at_their_places_and_leave_out_nothing_visible(text: str) -> None:
    words = split_words(text)
    places = list(zip(words.starts, words.ends, strict=True))
    assert [text[start:end] for start, end in places] == list(words.texts)
    assert all(start < end for start, end in places)
    assert [place for pair in places for place in pair] == sorted(place for pair in places for place in pair)
    rest = "".join(text[end:start] for end, start in zip((0, *words.ends), (*words.starts, len(text)), strict=True))
    assert not any(character.isalnum() or character in "!\"#$%&'()*+,-./:;<=>?@[]^`{|}~" for character in rest)


@pytest.mark.parametrize("part", ["a.", "www.)", "'", "1.", "a@a.", "http://", "\u200d", "a-"])
def test_a_long_text_is_split_in_one_pass(part: str) -> None:
    text = part * 50_000  # each of these would take hours if every word looked at the rest of the text
    assert split_words(text).ends[-1] == len(text) or part == "www.)"


TEXT = "Ada Lovelace, in London 🙂 (UK)."


def span(start: Any, end: Any, label: Any = "x") -> dict[str, Any]:
    return {"start": start, "end": end, "label": label}


@pytest.mark.parametrize(
    ("spans", "tags"),
    [
        ([], "O O O O O O O O O O"),
        ([span(0, 12, "per"), span(17, 23, "a-b")], "B-per I-per O O B-a-b O O O O O"),
        ([span(17, 23, " loc "), span(0, 3, "per"), span(4, 12, "per")], "B-per B-per O O B-loc O O O O O"),
        ([{**span(12, 24, "loc"), "text": "London", "id": 7}], "O O B-loc I-loc I-loc O O O O O"),
        ([span(24, 25), span(27, 29)], "O O O O O B-x O B-x O O"),
        ([span(0, 12), span(12, 13)], "B-x I-x B-x O O O O O O O"),
        ([span(0, len(TEXT))], "B-x " + "I-x " * 8 + "I-x"),
    ],
)
def test_spans_become_tags(spans: list[dict[str, Any]], tags: str) -> None:
    assert tags_of_spans(TEXT, split_words(TEXT), spans) == tags.split()


@pytest.mark.parametrize(
    ("spans", "problem"),
    [
        ([span(4, 4)], r"span 4 to 4 \('x'\) is empty; end is the place behind the span"),
        ([span(5, 4)], r"span 5 to 4 \('x'\) is empty"),
        ([span(3, 4)], r"span 3 to 4 \('x', ' '\) is empty: it has white space only"),
        ([span(0, 12), span(4, 13)], r"span 0 to 12 \('x', 'Ada Lovelace'\) and span 4 to 13 .* overlap"),
        ([span(0, 3), span(0, 3)], "overlap"),
        ([span(0, 12), span(4, 12, "y")], "overlap"),
        ([span(17, 99)], r"span 17 to 99 \('x'\) is not within the text, which has 31 characters"),
        ([span(-1, 3)], "span -1 to 3 .* is not within the text"),
        ([span(18, 23)], r"'ondon'\) begins inside the word 'London', which is 17 to 23; .* count characters"),
        ([span(17, 20)], r"'Lon'\) ends inside the word 'London'"),
        ([{"start": 0, "end": 3}], "has no 'label'; a span needs start, end and label"),
        ([span(None, 3)], "has no 'start'"),
        ([span(0, 3.0)], "'end' of span .* is not a whole number"),
        ([span(True, 3)], "'start' of span .* is not a whole number"),
        ([span(0, "3")], "'end' of span .* is not a whole number"),
        ([span(0, 3, 7)], "'label' of span .* is not a text"),
        ([span(0, 3, " ")], "'label' of span .* is not a text"),
        ([[0, 3, "x"]], r"span \[0, 3, 'x'\] is not an object"),
    ],
)
def test_a_wrong_span_is_described(spans: list[Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        tags_of_spans(TEXT, split_words(TEXT), spans)
