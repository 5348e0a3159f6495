"""Way: one way to change the words of a text. A new way is one new file with a subclass, and one line in `ways`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, TypeAlias

from kdray.augmentation.lexicon import Lexicon
from kdray.data.words import Words
from kdray.models.pretrained import Pretrained

NewWords: TypeAlias = list[str | None]
"""What a changed text has in the place of each word of the text; None: nothing, the word is deleted."""


@dataclass(frozen=True)
class WayInputs:
    """What ways may need."""

    lexicon: Lexicon
    """The teacher's tokenizer and embeddings."""
    share: float | None = None
    """The probability that a word changes; None: the way's own one."""
    masked_lm: Pretrained | None = None
    """A masked language model in the cache, for a way that needs one."""
    device: str = "cpu"
    """Where that model computes."""
    reader: Any = None
    """The tokenizer of the model that reads the copies; None: the teacher's."""


class Way(ABC):
    """One way to change texts."""

    default_share: ClassVar[float] = 0.0
    """The probability that a word changes, unless a setting says otherwise; 0 for a way without such a probability."""
    keeps_words: ClassVar[bool] = False
    """Whether a changed text has as many words as the text, each of them in the place of the word that it replaces."""
    needs_teacher: ClassVar[bool] = False
    """Whether the changes depend on the teacher's tokenizer or embeddings."""
    needs_embeddings: ClassVar[bool] = False
    """Whether the changes depend on the teacher's embeddings."""
    needs_masked_lm: ClassVar[bool] = False
    """Whether the way needs a masked language model, which the setting `augmentation.model` names."""

    def __init__(self, inputs: WayInputs) -> None:
        """Raises SpecError or TeacherError for a teacher or model that this way cannot use."""
        self.inputs = inputs
        self.share = self.default_share if inputs.share is None else inputs.share

    @abstractmethod
    def change(self, texts: Sequence[Words], draws: Sequence[Random]) -> list[NewWords]:
        """The words of each changed text. A text that this way cannot change keeps its words.

        Each text has its own random numbers in `draws`, so that its change does not depend on the other texts. Texts
        are given many at a time for ways that look up or compute something for all of them.
        """


class SingleTextWay(Way):
    """A way that changes each text by itself."""

    def change(self, texts: Sequence[Words], draws: Sequence[Random]) -> list[NewWords]:
        """See `Way`."""
        return [self.change_text(words.texts, draw) for words, draw in zip(texts, draws, strict=True)]

    @abstractmethod
    def change_text(self, words: Sequence[str], draw: Random) -> NewWords:
        """The words of a changed text."""


def draw_number(count: int, draw: Random) -> int:
    """A number from 0 to `count - 1`."""
    # Only random() gives the same numbers in all versions of Python; randrange() and choice() may change.
    return int(draw.random() * count)


def draw_places(places: Sequence[int], share: float, draw: Random) -> list[int]:
    """Each place with probability `share`; at least one of them, because a copy without a change adds nothing.

    No place if there are none.
    """
    drawn = [place for place in places if draw.random() < share]
    return drawn or [places[draw_number(len(places), draw)] for _ in places[:1]]


def draw_but_one(count: int, share: float, draw: Random) -> list[int]:
    """Places from 0 to `count - 1` as `draw_places` gives them, but not all of them; none of a single place."""
    if count < 2:
        return []
    drawn = draw_places(range(count), share, draw)
    if len(drawn) == count:
        drawn.pop(draw_number(count, draw))
    return drawn
