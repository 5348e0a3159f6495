"""Augmentation: how many changed copies of each text students learn from, and by which ways the texts are changed."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from kdray.augmentation.ways import WAYS
from kdray.errors import SpecError, did_you_mean
from kdray.settings import Names, Settings


class Augmentation(Settings):
    """Changed copies of the texts, which the teacher answers too. A copy has no gold."""

    copies: int = Field(0, ge=0)
    """How many changed copies of each text are added. Copies are written and labelled once, for the largest number that
    a sweep may need."""
    ways: Names = ()
    """How texts are changed: mask, ngrams, neighbours, masked_lm, order, delete. Each copy of a text is changed by one
    of them, drawn with equal chance; by another one where that one cannot change the text."""
    share: float | None = Field(None, gt=0, le=1)
    """The probability that a word changes; at least one word does. None: that of the paper of each way: mask 0.1,
    neighbours 0.4, masked_lm 0.15, order 0.1, delete 0.1. ngrams keeps one to five words in any case."""
    model: str | None = None
    """The masked language model of the way masked_lm: a folder or a hub name."""
    revision: str | None = None
    """The revision of that model on the hub."""
    seed: int = Field(0, ge=0)
    """The seed of all changes."""

    @field_validator("ways")
    @classmethod
    def _check_ways(cls, ways: tuple[str, ...]) -> tuple[str, ...]:
        for way in ways:
            if way not in WAYS:
                raise ValueError(f"got {way!r}; {did_you_mean(way, WAYS)}")
        if len(set(ways)) < len(ways):
            raise ValueError(f"got {', '.join(ways)}; name each way once, because all have the same chance.")
        return ways

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        if self.copies and not self.ways:
            raise ValueError(
                f"Augmentation.ways: {self.copies} copies of each text are requested, but no way to change them. Name "
                f"at least one of {', '.join(WAYS)}."
            )
        users = [name for name, way in WAYS.items() if way.needs_masked_lm]
        if self.needs_masked_lm and self.model is None:
            raise ValueError(
                f"Augmentation.model: {', '.join(users)} needs a masked language model. Give its folder or hub name."
            )
        if self.model is not None and self.ways and not self.needs_masked_lm:
            raise ValueError(
                f"Augmentation.model: got {self.model!r}, but only {', '.join(users)} uses a model. Add it to ways, or "
                "leave out model."
            )
        if self.revision is not None and self.model is None:
            raise ValueError("Augmentation.revision: it is that of model, which is not given. Leave out revision.")
        return self

    @property
    def needs_masked_lm(self) -> bool:
        """Whether one of the ways needs a masked language model."""
        return any(WAYS[way].needs_masked_lm for way in self.ways)

    @property
    def needs_teacher(self) -> bool:
        """Whether the copies depend on the teacher: on its tokenizer or its embeddings."""
        return any(WAYS[way].needs_teacher for way in self.ways)

    @property
    def needs_embeddings(self) -> bool:
        """Whether one of the ways reads the teacher's embeddings before any fine-tuning."""
        return any(WAYS[way].needs_embeddings for way in self.ways)


def check_ways(augmentation: Augmentation, are_words: bool) -> None:
    """Raise SpecError for a way that cannot be used with these texts.

    `are_words`: texts are lists of words, each of which has an answer. Then only ways are allowed that keep the number
    and the order of the words.
    """
    allowed = [name for name, way in WAYS.items() if way.keeps_words or not are_words]
    refused = [way for way in augmentation.ways if way not in allowed]
    if refused:
        raise SpecError(
            f"augmentation.ways: got {', '.join(refused)}, which changes the number or the order of the words, but "
            f"this task has an answer for each word. Allowed: {', '.join(allowed)}."
        )
