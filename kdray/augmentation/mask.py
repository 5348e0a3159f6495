"""Words are replaced by the mask token, or by the unknown token of a tokenizer that has no mask token.

Tang et al. (2019), "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks", arXiv:1903.12136,
section 3.3: each word is masked with probability 0.1.

A student with another tokenizer than the teacher reads its own mask token in the same places.
"""

from collections.abc import Sequence
from random import Random
from typing import ClassVar

from kdray.augmentation.way import NewWords, SingleTextWay, WayInputs, draw_but_one
from kdray.errors import SpecError
from kdray.sources.tables import short_repr


class Mask(SingleTextWay):
    """Replaces words by the mask token, but never all words of a text: nothing would be left to answer for."""

    default_share: ClassVar[float] = 0.1
    keeps_words: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True

    def __init__(self, inputs: WayInputs) -> None:
        """Raises SpecError for a tokenizer that has neither a mask token nor an unknown token."""
        super().__init__(inputs)
        self._token = _token_of(inputs)

    def change_text(self, words: Sequence[str], draw: Random) -> NewWords:
        """See `SingleTextWay`."""
        masked = set(draw_but_one(len(words), self.share, draw))
        return [self._token if place in masked else word for place, word in enumerate(words)]


def _token_of(inputs: WayInputs) -> str:
    tokenizer = inputs.lexicon.tokenizer if inputs.reader is None else inputs.reader
    if tokenizer.mask_token is not None:
        return str(tokenizer.mask_token)
    # GPT-2 calls its end of a text the unknown token, too; a decoder would read the end of the text in its middle.
    if tokenizer.unk_token is None or tokenizer.unk_token in (tokenizer.eos_token, tokenizer.pad_token):
        raise SpecError(
            f"augmentation.ways: mask replaces words by the mask token, or else the unknown token, and the tokenizer "
            f"{short_repr(tokenizer.name_or_path)} has neither. Leave out mask."
        )
    return str(tokenizer.unk_token)
