"""Words are replaced by near words of the teacher's embedding table.

Jiao et al. (2020), "TinyBERT: Distilling BERT for Natural Language Understanding", arXiv:1909.10351, Algorithm 1: a
word is replaced with probability 0.4 by one of its 15 nearest words. TinyBERT searches them among the embeddings of
GloVe; the teacher's own table needs no download, and has the words that the teacher knows.

Letters: C whole words of the vocabulary.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from random import Random
from typing import ClassVar

import numpy as np

from kdray.augmentation.nearest import nearest
from kdray.augmentation.vocabulary import single_tokens, with_case_of
from kdray.augmentation.way import NewWords, Way, WayInputs, draw_number, draw_places
from kdray.data.words import Words

NEAREST = 15
"""How many of the nearest words may replace a word."""
MOST_WORDS = 500_000
"""Words whose tokens are remembered; with more, all are forgotten, so that memory does not grow with the texts."""


class Neighbours(Way):
    """Replaces words that are a single token by other such words; words of several tokens stay as they are.

    In a vocabulary of sub-words that may span several words of a language without spaces, such as XLM-R's for Chinese,
    few words of that language are single tokens, and other texts cannot be changed.
    """

    default_share: ClassVar[float] = 0.4
    keeps_words: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True
    needs_embeddings: ClassVar[bool] = True

    def __init__(self, inputs: WayInputs) -> None:
        super().__init__(inputs)
        self._places: dict[str, int | None] = {}
        """Word -> its place among the whole words."""
        self._nearest: dict[int, np.ndarray] = {}
        """Place of a whole word -> the places of its nearest words."""

    def change(self, texts: Sequence[Words], draws: Sequence[Random]) -> list[NewWords]:
        """See `Way`."""
        self._find_places({word for words in texts for word in words.texts})
        drawn = [self._draw(words.texts, draw) for words, draw in zip(texts, draws, strict=True)]
        self._find_nearest({place for places in drawn for place in places.values()})
        return [
            self._replaced(words.texts, places, draw) for words, places, draw in zip(texts, drawn, draws, strict=True)
        ]

    @cached_property
    def _groups(self) -> np.ndarray:
        """The same number for words that differ in their case only: they are the same word (C)."""
        folded = [text.casefold() for text in self.inputs.lexicon.words.texts]
        return np.unique(folded, return_inverse=True)[1]

    def _draw(self, words: Sequence[str], draw: Random) -> dict[int, int]:
        """The number of each word that shall change -> its place among the whole words."""
        places = {number: place for number, word in enumerate(words) if (place := self._places[word]) is not None}
        return {number: places[number] for number in draw_places(list(places), self.share, draw)}

    def _replaced(self, words: Sequence[str], places: dict[int, int], draw: Random) -> NewWords:
        new: NewWords = list(words)
        for number, place in places.items():
            near = self._nearest[place]
            if len(near):
                chosen = self.inputs.lexicon.words.texts[int(near[draw_number(len(near), draw)])]
                new[number] = with_case_of(words[number], chosen)
        return new

    def _find_places(self, words: set[str]) -> None:
        if len(self._places) > MOST_WORDS:
            self._places.clear()
        unknown = sorted(words - self._places.keys())
        lexicon = self.inputs.lexicon
        for word, token in zip(unknown, single_tokens(lexicon.tokenizer, unknown), strict=True):
            self._places[word] = None if token is None else lexicon.words.places.get(token)

    def _find_nearest(self, places: Iterable[int]) -> None:
        unknown = sorted(set(places) - self._nearest.keys())
        if not unknown:
            return
        lexicon = self.inputs.lexicon
        found = nearest(
            lexicon.embeddings,
            np.array(lexicon.words.ids),
            self._groups,
            queries_Q=np.array(unknown),
            count=NEAREST,
        )
        self._nearest |= dict(zip(unknown, found, strict=True))
