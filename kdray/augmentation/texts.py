"""A cell of a column of texts as words, and a cell of changed words.

A cell is a text, or a list of words for a task that has an answer for each word.
"""

from functools import cache
from itertools import pairwise
from typing import Any

from kdray.augmentation.way import NewWords
from kdray.data.words import Words, split_words


def words_of(cell: Any) -> Words:
    """The words of a text by the rule of `kdray.data.words`; a list has its words."""
    return split_words(cell) if isinstance(cell, str) else Words.of_list(cell)


def changed_cell(cell: Any, words: Words, new: NewWords) -> Any:
    """The cell with these words in the places of its words.

    What stands before each word of a text stays: spaces, line breaks, nothing. Where two words would become one without
    the words between them, a gap between those stays, or else a space: `well-known` becomes `well known`.
    """
    if isinstance(cell, str):
        return _changed_text(words, new) if len(words) else cell
    return [word for word in new if word is not None]


def _changed_text(words: Words, new: NewWords) -> str:
    # What stands between each word and the next one.
    gaps = [words.text[end:start] for end, start in zip(words.ends, words.starts[1:], strict=False)]
    left = [(place, word) for place, word in enumerate(new) if word is not None]
    parts = [words.text[: words.starts[0]], left[0][1]]
    for (before, word), (place, next_word) in pairwise(left):
        gap = gaps[place - 1]
        are_as_before = place == before + 1 and [word, next_word] == [*words.texts[before : place + 1]]
        if not gap and not are_as_before and _is_one_word(word[-1:] + next_word[:1]):
            gap = next((other for other in gaps[before:place] if other), " ")
        parts += [gap, next_word]
    return "".join([*parts, words.text[words.ends[-1] :]])


@cache
def _is_one_word(characters: str) -> bool:
    """Whether two characters side by side belong to one word."""
    return len(split_words(characters)) == 1
