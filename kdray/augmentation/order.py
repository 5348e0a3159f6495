"""Neighbouring words are exchanged.

Wei and Zou (2019), "EDA: Easy Data Augmentation Techniques for Boosting Performance on Text Classification Tasks",
arXiv:1901.11196, exchange words anywhere in a text, one for each ten words. Lample et al. (2018), arXiv:1711.00043, let
a word move by a few places only, so that a sentence stays readable; so do exchanges of neighbours.
"""

from collections.abc import Sequence
from random import Random
from typing import ClassVar

from kdray.augmentation.way import NewWords, SingleTextWay, draw_places


class Order(SingleTextWay):
    """Exchanges each two neighbouring words with the same probability, from left to right."""

    default_share: ClassVar[float] = 0.1

    def change_text(self, words: Sequence[str], draw: Random) -> NewWords:
        """See `SingleTextWay`."""
        new: NewWords = list(words)
        different = [place for place in range(len(words) - 1) if words[place] != words[place + 1]]
        for place in draw_places(different, self.share, draw):
            new[place], new[place + 1] = new[place + 1], new[place]
        return new
