"""The words of a vocabulary that are a single token inside a text.

Tokenizers mark the beginning or the continuation of a word in many ways (##ing, Ġfilm, ▁film). The tokenizer itself is
asked: a token is a word if the tokenizer reads its text, behind another word, as that token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

ANCHOR = "a"
"""The word before a word that is encoded: tokenizers such as RoBERTa's encode the first word of a text otherwise."""
WORDS_AT_ONCE = 10_000
"""Words in one call of the tokenizer."""


@dataclass(frozen=True)
class WholeWords:
    """The words of a vocabulary that are a single token; no special tokens, and words with a letter only."""

    ids: tuple[int, ...]
    """Their tokens, in ascending order."""
    texts: tuple[str, ...]
    """The words, in the order of the tokens."""

    @cached_property
    def places(self) -> dict[int, int]:
        """Token -> its place in `ids`."""
        return {token: place for place, token in enumerate(self.ids)}


def whole_words(tokenizer: Any, tokens: int) -> WholeWords:
    """The words that are a single token of this tokenizer, of its first `tokens` tokens."""
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    ids = sorted(token for token in set(tokenizer.get_vocab().values()) - special if token < tokens)
    texts = [text.strip() for text in tokenizer.batch_decode([[token] for token in ids])]
    candidates = [(token, text) for token, text in zip(ids, texts, strict=True) if _is_word(text)]
    found = single_tokens(tokenizer, [text for _, text in candidates])
    whole = [pair for pair, single in zip(candidates, found, strict=True) if pair[0] == single]
    return WholeWords(ids=tuple(token for token, _ in whole), texts=tuple(text for _, text in whole))


def single_tokens(tokenizer: Any, words: Sequence[str]) -> list[int | None]:
    """For each word the only token of it inside a text; None for a word of several tokens."""
    found: list[int | None] = []
    for start in range(0, len(words), WORDS_AT_ONCE):
        texts = [ANCHOR, *(f"{ANCHOR} {word}" for word in words[start : start + WORDS_AT_ONCE])]
        anchor, *encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        size = len(anchor)
        found += [ids[size] if len(ids) == size + 1 and ids[:size] == anchor else None for ids in encoded]
    return found


def has_letter(word: str) -> bool:
    """Whether one of the characters is a letter of any script."""
    return any(map(str.isalpha, word))


def with_case_of(word: str, new: str) -> str:
    """The word `new` with the case of `word`: capitals, a capital first letter, or as it is."""
    if len(word) > 1 and word.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if word[:1].isupper() else new


def _is_word(text: str) -> bool:
    return has_letter(text) and not any(map(str.isspace, text))
