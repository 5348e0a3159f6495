"""Words are replaced by what a masked language model expects in their places.

Jiao et al. (2020), arXiv:1909.10351, Algorithm 1: a word is masked, and replaced by one of the 15 most probable words.
Two things differ. All words of a copy that shall change are masked together, so that a copy costs one pass of the model
instead of one for each word; therefore a word changes with probability 0.15, the share that such models are trained
with (Devlin et al. 2019, arXiv:1810.04805), and not 0.4. A word of several tokens is masked by a single mask token,
where TinyBERT takes GloVe's neighbours.

Letters: P masked places of a batch, L tokens, C whole words of the vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdray.augmentation.masked_model import load_masked_lm
from kdray.augmentation.vocabulary import WholeWords, has_letter, whole_words, with_case_of
from kdray.augmentation.way import NewWords, Way, draw_number, draw_places
from kdray.data.batches import batches_of_equal_length
from kdray.data.words import Words
from kdray.models.pretrained import Pretrained

MOST_PROBABLE = 15
"""How many of the most probable words may replace a word."""
SPARE = 5
"""Further words that are looked at, because the word itself, in any case of its letters, replaces nothing."""
WORDS_AT_ONCE = 100
"""The most words that the model reads at once: longer texts are read in parts."""
MOST_TOKENS = 512
"""Tokens that the model reads at once; a masked word behind them stays as it is."""
BATCH_SIZE = 64
"""Parts of texts in one pass of the model."""


@dataclass(frozen=True)
class _Part:
    """A part of a text, with mask tokens in the places of words."""

    text_number: int
    text: str
    words: list[int]
    """The numbers of the masked words in the text."""
    characters: list[int]
    """The first character of each mask token in the part."""


class MaskedLM(Way):
    """Replaces words with a letter by the words that a masked language model expects there."""

    default_share: ClassVar[float] = 0.15
    keeps_words: ClassVar[bool] = True
    needs_masked_lm: ClassVar[bool] = True

    def change(self, texts: Sequence[Words], draws: Sequence[Random]) -> list[NewWords]:
        """See `Way`.

        The texts of a batch have equally many tokens, so no text depends on padding. Rounding still differs between
        processors and sizes of batches; it decides only where two words are as probable as each other to 7 digits.
        """
        drawn = [self._draw(words.texts, draw) for words, draw in zip(texts, draws, strict=True)]
        expected = self._expected_words(texts, drawn)
        new: list[NewWords] = [list(words.texts) for words in texts]
        for number, (places, draw) in enumerate(zip(drawn, draws, strict=True)):
            for place in places:
                word = texts[number].texts[place]
                candidates = [each for each in expected.get((number, place), ()) if each.casefold() != word.casefold()]
                if candidates:
                    # In the order of the alphabet: near ties in the order of probability then change nothing.
                    chosen = sorted(candidates[:MOST_PROBABLE])[draw_number(min(len(candidates), MOST_PROBABLE), draw)]
                    new[number][place] = with_case_of(word, chosen)
        return new

    def _draw(self, words: Sequence[str], draw: Random) -> list[int]:
        return draw_places([place for place, word in enumerate(words) if has_letter(word)], self.share, draw)

    def _expected_words(
        self, texts: Sequence[Words], drawn: Sequence[Sequence[int]]
    ) -> dict[tuple[int, int], list[str]]:
        """The numbers of a text and of a masked word in it -> the most probable words, most probable first."""
        mask = str(self._tokenizer.mask_token)
        parts = [
            part
            for number, (words, places) in enumerate(zip(texts, drawn, strict=True))
            for part in _masked_parts((number, words), places, self._words_at_once, mask)
        ]
        if not parts:
            return {}
        encoded = self._tokenizer(
            [part.text for part in parts], truncation=True, max_length=self._most_tokens, verbose=False
        )
        lengths = np.array([len(ids) for ids in encoded["input_ids"]])
        expected: dict[tuple[int, int], list[str]] = {}
        for batch in batches_of_equal_length(lengths, BATCH_SIZE):
            owners, rows, tokens = self._find_masks(encoded, parts, batch)
            inputs = {name: torch.tensor([encoded[name][part] for part in batch]) for name in encoded}
            expected |= dict(zip(owners, self._most_probable(inputs, rows, tokens), strict=True))
        return expected

    def _find_masks(
        self, encoded: Any, parts: Sequence[_Part], batch: np.ndarray
    ) -> tuple[list[tuple[int, int]], list[int], list[int]]:
        """For each mask token in a batch: its text and word, its row in the batch, and its place among the tokens."""
        owners, rows, tokens = [], [], []
        for row, number in enumerate(batch.tolist()):
            part = parts[number]
            for word, character in zip(part.words, part.characters, strict=True):
                token = encoded.char_to_token(number, character)
                # None: it was truncated.
                if token is not None and encoded["input_ids"][number][token] == self._tokenizer.mask_token_id:
                    owners.append((part.text_number, word))
                    rows.append(row)
                    tokens.append(token)
        return owners, rows, tokens

    def _most_probable(self, inputs: dict[str, Tensor], rows: list[int], tokens: list[int]) -> list[list[str]]:
        """The most probable whole words at these places of a batch, for each place."""
        if not rows:
            return []
        device = self.inputs.device
        logits_PxV = _logits_at(self._model, {name: each.to(device) for name, each in inputs.items()}, rows, tokens)
        logits_PxC = logits_PxV[:, torch.tensor(self._words.ids, device=device)]
        best_PxK = logits_PxC.topk(min(MOST_PROBABLE + SPARE, logits_PxC.shape[1])).indices.cpu()
        return [[self._words.texts[place] for place in places] for places in best_PxK.tolist()]

    @cached_property
    def _tokenizer(self) -> Any:
        return self._stored.tokenizer()

    @cached_property
    def _model(self) -> PreTrainedModel:
        return load_masked_lm(self._stored, self.inputs.device)

    @cached_property
    def _words(self) -> WholeWords:
        return whole_words(self._tokenizer, self._model.get_input_embeddings().weight.shape[0])

    @property
    def _most_tokens(self) -> int:
        # RoBERTa and similar models number their tokens from 2 on.
        positions = getattr(self._model.config, "max_position_embeddings", None) or MOST_TOKENS + 2
        return int(min(self._tokenizer.model_max_length, MOST_TOKENS, positions - 2))

    @property
    def _words_at_once(self) -> int:
        # With four tokens a word, which is far above the mean, all words of a part are read.
        return min(WORDS_AT_ONCE, max(1, self._most_tokens // 4))

    @property
    def _stored(self) -> Pretrained:
        if self.inputs.masked_lm is None:
            raise LookupError("the way masked_lm has no model; copy_inputs gives it one.")
        return self.inputs.masked_lm


def _masked_parts(text: tuple[int, Words], places: Sequence[int], size: int, mask: str) -> Iterator[_Part]:
    """The parts of a text, of `size` words, in which a word shall be masked. A text comes with its number."""
    number, words = text
    for first in range(0, len(words), size):
        inside = [place for place in places if first <= place < first + size]
        if not inside:
            continue
        masked, characters, end = "", [], words.starts[first]
        for place in inside:
            masked += words.text[end : words.starts[place]]
            characters.append(len(masked))
            masked, end = masked + mask, words.ends[place]
        last = min(first + size, len(words)) - 1
        yield _Part(number, masked + words.text[end : words.ends[last]], inside, characters)


def _logits_at(model: PreTrainedModel, inputs: dict[str, Tensor], rows: list[int], tokens: list[int]) -> Tensor:
    """The logits of the vocabulary at these tokens of a batch (P x V)."""

    def select(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (arguments[0][rows, tokens],) if arguments[0].dim() == 3 else None

    # The head computes a number for each word of the vocabulary: for all tokens of a batch that would be more than half
    # of the work of a small model, and hundreds of megabytes.
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(select) if head is not None else None
    try:
        with torch.inference_mode():
            logits: Tensor = model(**inputs).logits
    finally:
        if hook is not None:
            hook.remove()
    # Some models compute the logits without calling their head as a module.
    return logits[rows, tokens] if logits.dim() == 3 else logits
