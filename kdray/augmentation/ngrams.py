"""Of a text, a few words in a row are left: an n-gram.

Tang et al. (2019), arXiv:1903.12136, section 3.3: n is drawn from 1 to 5, all other words are dropped. It changes a
text more than masking does.
"""

from collections.abc import Sequence
from random import Random

from kdray.augmentation.way import NewWords, SingleTextWay, draw_number

LONGEST = 5
"""The most words of an n-gram."""


class NGrams(SingleTextWay):
    """Keeps one to five words in a row, and at most all words but one."""

    def change_text(self, words: Sequence[str], draw: Random) -> NewWords:
        """See `SingleTextWay`."""
        if len(words) < 2:
            return list(words)
        length = 1 + draw_number(min(LONGEST, len(words) - 1), draw)
        first = draw_number(len(words) - length + 1, draw)
        return [word if first <= place < first + length else None for place, word in enumerate(words)]
