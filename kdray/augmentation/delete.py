"""Words are deleted.

Wei and Zou (2019), arXiv:1901.11196, and Lample et al. (2018), arXiv:1711.00043, delete each word with probability 0.1.
"""

from collections.abc import Sequence
from random import Random
from typing import ClassVar

from kdray.augmentation.way import NewWords, SingleTextWay, draw_but_one


class Delete(SingleTextWay):
    """Deletes words, but never all words of a text."""

    default_share: ClassVar[float] = 0.1

    def change_text(self, words: Sequence[str], draw: Random) -> NewWords:
        """See `SingleTextWay`."""
        deleted = set(draw_but_one(len(words), self.share, draw))
        return [None if place in deleted else word for place, word in enumerate(words)]
