"""Sentences of words as a model reads them: sub-words, the place of each word, and windows of long sentences.

A model answers for a word at its first sub-word. A sentence with more sub-words than a model reads is cut into windows
that overlap; each word is answered in one of them, with sub-words on both sides of it.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer

from kdray.errors import SpecError, TeacherError
from kdray.tasks.texts import check_max_length

TOKEN_TYPES = "token_type_ids"  # noqa: S105 - the name of an input
_SPARE_TOKENS = ("unk_token_id", "mask_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "pad_token_id")
"""Where `spare_token` looks, in this order."""


@dataclass(frozen=True)
class WordInputs:
    """Sentences as windows of token ids. All windows of a sentence follow each other."""

    inputs: dict[str, list[list[int]]]
    """Input name -> one list of numbers for each window: not padded, and without the attention mask."""
    places: list[list[int]]
    """The token of each word that a window answers, from 0, in the order of the words. All windows of a sentence
    together answer each of its words once."""
    sentences: list[int]
    """The number of the sentence that each window is a part of, from 0."""


@dataclass(frozen=True)
class Window:
    """A part of a sentence, and the words that it answers."""

    begin: int
    """The first sub-word."""
    end: int
    """The sub-word after the last one."""
    first_word: int
    """The first word that it answers."""
    end_word: int
    """The word after the last one that it answers."""


@dataclass(frozen=True)
class Frame:
    """The special tokens around a text, with their token types."""

    before: list[int]
    behind: list[int]
    types_before: list[int]
    types_behind: list[int]
    type_of_words: int

    @property
    def size(self) -> int:
        """The number of these tokens."""
        return len(self.before) + len(self.behind)

    def around(self, ids: Sequence[int]) -> list[int]:
        """These tokens of a text, between the special ones."""
        return [*self.before, *ids, *self.behind]

    def types_around(self, tokens: int) -> list[int]:
        """The token types of so many tokens of a text, between those of the special ones."""
        return [*self.types_before, *[self.type_of_words] * tokens, *self.types_behind]


def load_word_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in this folder so that it encodes single words as it encodes words inside a text.

    For tokenizers such as those of GPT-2 and RoBERTa, the space before a word is a part of it, and words of a list have
    no space: they would be encoded as if they continued the word before them. A saved tokenizer stays like this, except
    that classes of some decoders (such as Qwen's) replace their normalizer when plain transformers loads them.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.is_fast or not _needs_prefix_space(tokenizer):
        return tokenizer
    # Classes such as RobertaTokenizer build their parts from this argument, and save it.
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, add_prefix_space=True)
    if not _needs_prefix_space(tokenizer):
        return tokenizer
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        backend.pre_tokenizer.add_prefix_space = True
    else:
        # In a sequence, ByteLevel would put a space before each part that the splitter before it makes of a word.
        others = [backend.normalizer] if backend.normalizer else []
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(" "), *others])
    return tokenizer


def encode_words(tokenizer: Any, sentences: Sequence[Sequence[str]], max_length: int) -> WordInputs:
    """Encode sentences of words for a model that reads at most `max_length` tokens, special tokens included.

    A word with more sub-words than fit into a window is answered at its first one. In the place of a word without any
    sub-word, such as a zero-width space, `spare_token` is encoded. A sentence without words gives one window without
    places.
    Raises TeacherError for a tokenizer that does not say which sub-words a word has, and SpecError for a `max_length`
    that is too small, or greater than that of the tokenizer.
    """
    frame = frame_of(tokenizer)
    room = _room(tokenizer, max_length, frame)
    has_types = TOKEN_TYPES in tokenizer.model_input_names
    inputs: dict[str, list[list[int]]] = {"input_ids": [], **({TOKEN_TYPES: []} if has_types else {})}
    places: list[list[int]] = []
    numbers: list[int] = []
    spare = spare_token(tokenizer)
    for number, (ids, firsts) in enumerate(_sub_words(tokenizer, sentences, spare)):
        for window in cut_windows(firsts, len(ids), room):
            # A model reads at least one token.
            inner = ids[window.begin : window.end] or ([] if frame.size else [spare])
            inputs["input_ids"].append(frame.around(inner))
            if has_types:
                inputs[TOKEN_TYPES].append(frame.types_around(len(inner)))
            offset = len(frame.before) - window.begin
            places.append([first + offset for first in firsts[window.first_word : window.end_word]])
            numbers.append(number)
    return WordInputs(inputs=inputs, places=places, sentences=numbers)


def count_tokens(tokenizer: Any, sentences: Sequence[Sequence[str]]) -> list[int]:
    """The number of tokens of each sentence in one window of any length, special tokens included.

    Raises TeacherError for a tokenizer that does not say which sub-words a word has.
    """
    size = frame_of(tokenizer).size
    return [len(ids) + size for ids, _ in _sub_words(tokenizer, sentences, spare_token(tokenizer))]


def spare_token(tokenizer: Any) -> int:
    """The token that stands for a word without sub-words.

    It is the unknown token; if there is none, the one for masks, the end of a text, or padding; otherwise token 0.
    """
    found = (getattr(tokenizer, name, None) for name in _SPARE_TOKENS)
    return next((token for token in found if token is not None), 0)


def cut_windows(firsts: Sequence[int], size: int, room: int) -> list[Window]:
    """Cut a sentence of `size` sub-words into windows of at most `room` sub-words.

    `firsts` are the first sub-words of its words. A word has about a quarter of a window on both sides, as far as the
    sentence reaches and its own sub-words leave room.
    """
    if size <= room:
        return [Window(begin=0, end=size, first_word=0, end_word=len(firsts))]
    context = room // 4
    windows = []
    word = 0
    while word < len(firsts):
        begin = _begin(firsts, word, context)
        if begin + room >= size:
            end_word = len(firsts)
        else:
            # The last word that begins within the answered part may end outside of it; the words before it end inside.
            end_word = max(bisect_right(firsts, begin + room - context) - 1, word + 1)
            # A window that begins at the same place would be this one again: it happens behind very long words.
            while end_word < len(firsts) and _begin(firsts, end_word, context) == begin:
                end_word += 1
        windows.append(Window(begin=begin, end=min(begin + room, size), first_word=word, end_word=end_word))
        word = end_word
    return windows


def _begin(firsts: Sequence[int], word: int, context: int) -> int:
    """Where the window begins that answers this word first: at a word, at most `context` sub-words before it."""
    return firsts[bisect_left(firsts, firsts[word] - context)]


def _room(tokenizer: Any, max_length: int, frame: Frame) -> int:
    """The number of sub-words of one window."""
    check_max_length(max_length, tokenizer)
    if max_length <= frame.size:
        raise SpecError(
            f"task.max_length: got {max_length}; this model adds {frame.size} tokens to each sentence. "
            f"Give at least {frame.size + 1}."
        )
    return max_length - frame.size


def frame_of(tokenizer: Any) -> Frame:
    """The special tokens that this tokenizer puts around a text.

    Raises TeacherError for a tokenizer that does not say which tokens a word has.
    """
    if not tokenizer.is_fast:
        raise TeacherError(
            f"the tokenizer of this model, {type(tokenizer).__name__}, does not say which tokens a word has. Tags of "
            f"words need a fast tokenizer, one with a file tokenizer.json. Give another model."
        )
    encoded = tokenizer([["a"]], is_split_into_words=True, return_token_type_ids=True, verbose=False)
    (ids,), (types,), words = encoded["input_ids"], encoded[TOKEN_TYPES], encoded.word_ids(0)
    inner = [place for place, word in enumerate(words) if word is not None]
    if not inner:
        raise TeacherError("the tokenizer of this model gives no token for the word 'a'. Give another model.")
    first, end = inner[0], inner[-1] + 1
    return Frame(
        before=ids[:first],
        behind=ids[end:],
        types_before=types[:first],
        types_behind=types[end:],
        type_of_words=types[first],
    )


def _sub_words(tokenizer: Any, sentences: Sequence[Sequence[str]], spare: int) -> Iterator[tuple[list[int], list[int]]]:
    """For each sentence the ids of its sub-words, without special tokens, and the first sub-word of each word."""
    encoded = tokenizer(
        [list(words) for words in sentences],
        is_split_into_words=True,
        add_special_tokens=False,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        verbose=False,
    )
    for number, words in enumerate(sentences):
        yield _with_every_word(encoded["input_ids"][number], encoded.word_ids(number), len(words), spare)


def _with_every_word(ids: list[int], words_of_ids: list[int], words: int, spare: int) -> tuple[list[int], list[int]]:
    """The ids, with one more for each word without sub-words, and the place of the first id of each word."""
    starts = [bisect_left(words_of_ids, word) for word in range(words + 1)]
    if all(start < end for start, end in pairwise(starts)):
        return ids, starts[:-1]
    every: list[int] = []
    firsts = []
    for start, end in pairwise(starts):
        firsts.append(len(every))
        every += ids[start:end] or [spare]
    return every, firsts


def _needs_prefix_space(tokenizer: Any) -> bool:
    """Whether the space before a word would be missing for the words of a list."""
    backend = tokenizer.backend_tokenizer
    levels = [each for each in _parts(backend.pre_tokenizer) if isinstance(each, pre_tokenizers.ByteLevel)]
    # `load_word_tokenizer` may have saved the space as a part of the normalizer.
    has_prepend = any(isinstance(each, normalizers.Prepend) for each in _parts(backend.normalizer))
    return bool(levels) and not any(each.add_prefix_space for each in levels) and not has_prepend


def _parts(sequence: Any) -> list[Any]:
    """The parts of a pre-tokenizer or normalizer."""
    if not isinstance(sequence, pre_tokenizers.Sequence | normalizers.Sequence):
        return [sequence]
    parts: list[Any] = []
    # A sequence of `tokenizers` has no length.
    while True:
        try:
            part = sequence[len(parts)]
        except IndexError:
            return parts
        parts.append(part)
