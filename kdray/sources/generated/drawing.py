"""What all generators share: the settings of their splits, distinct rows of a split, and votes of an annotator."""

import math
import random
import zlib
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import Field

from kdray.settings import Settings, later_field

Split: TypeAlias = Literal["train", "validation", "test"]

UNLABELLED = "unlabelled"
"""The split of texts without labels."""
OTHER_SEED = 1_000_000_007
"""Added to the seed for the texts without labels, so that they are other ones than those of train."""

T = TypeVar("T")


class GeneratedRows(Settings):
    """Generated rows: the same seed gives the same rows in every process, and no two splits share a row."""

    kind: str
    """Which generator this is; `generators.KINDS` has all of them."""
    train_rows: int = Field(16_000, ge=2)
    validation_rows: int = Field(2000, ge=2)
    test_rows: int = Field(2000, ge=2)
    unlabelled_rows: int = later_field(0, ge=0)
    """The number of texts in a further split, `unlabelled`, whose answers nobody has given."""
    seed: int = 0

    text_columns: ClassVar[tuple[str, ...]] = ("text",)
    """The columns that tell two rows apart."""

    @abstractmethod
    def rows(self, split: Split) -> dict[str, list[Any]]:
        """Column -> cells, of one split; no row occurs twice."""

    def unlabelled(self) -> dict[str, list[Any]]:
        """The text columns of the split `unlabelled`; none of these texts is in train."""
        # More than are needed, because some of them may be in train.
        count = self.unlabelled_rows + self.train_rows
        others = self.model_copy(update={"train_rows": count, "seed": self.seed + OTHER_SEED})
        own, rows = self.rows("train"), others.rows("train")
        in_train = {str(text) for text in zip(*(own[name] for name in self.text_columns), strict=True)}
        texts = zip(*(rows[name] for name in self.text_columns), strict=True)
        new = [text for text in texts if str(text) not in in_train][: self.unlabelled_rows]
        return {name: [text[place] for text in new] for place, name in enumerate(self.text_columns)}

    def random_of(self, split: Split) -> random.Random:
        """The random numbers that all rows of this split are drawn with."""
        # The seed is a text: it gives the same numbers in every process, which hash() of a text would not.
        return random.Random(f"{split} {self.seed}")  # noqa: S311 - words, no secrets

    def distinct(self, split: Split, draw: Callable[[], T | None], text: Callable[[T], str]) -> list[T]:
        """As many rows as the split shall have, each with another text, in the order in which they were drawn.

        `draw` gives one row, or None to try again. `text` is what tells two rows apart.
        """
        count = {"train": self.train_rows, "validation": self.validation_rows, "test": self.test_rows}[split]
        found: dict[str, T] = {}
        while len(found) < count:
            row = draw()
            if row is not None and split_of(text(row)) == split:
                found[text(row)] = row
        return list(found.values())


def split_of(text: str) -> Split:
    """The only split that may contain this text.

    It depends on the text alone, so that the size of one split has no influence on the others.
    """
    return ("train", "train", "validation", "test")[zlib.crc32(text.encode()) % 4]


def is_right(draw: random.Random, strength: float, sureness: float) -> bool:
    """Whether an annotator answers correctly: with probability 1 / (1 + exp(-sureness * strength)).

    `strength`, at least 0, says how clear the answer is. An infinite sureness gives correct answers, and draws as many
    random numbers: one.
    """
    return draw.random() < 1 / (1 + math.exp(-sureness * strength))
