"""A vocabulary of whole words for a student: a word tokenizer, and an embedding table from a file or from the source.

The derived source is a folder with the table, the tokenizer and the outputs of the source; it has no trained layers, so
only families read it whose layers are drawn. In array names: W words and special tokens, V ids of the source, E width.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from kdray.data.tokens import TextBlocks, TokenSet
from kdray.errors import DataError
from kdray.models.pretrained import Pretrained, cached_folder, save_model
from kdray.networks.recurrent_model import RecurrentConfig
from kdray.networks.registered import OWN_MODELS
from kdray.storage.files import fingerprint
from kdray.storage.paths import StoragePaths
from kdray.students.embedding_tables import source_table
from kdray.students.vocabularies import Vocabulary, VocabularyPlan
from kdray.tasks.heads import head_of
from kdray.vocabulary.counting import count_uses
from kdray.vocabulary.cutting import ids_in, renumbered
from kdray.vocabulary.vectors import SETTING, WordVectors, find_vectors
from kdray.vocabulary.words import texts_to_count, word_tokenizer, words_of

FORMAT = 1
"""Part of every key: increase it when derived sources change, so that older ones are not read."""
LEAST_COVERED = 0.1
"""The least share of the words that a file must have vectors for: another file belongs to another language."""
WORDS_AT_ONCE = 10_000
"""Words in one call of the source's tokenizer."""
UNKNOWN = "[UNK]"
"""The unknown token of words if the source has none."""


@dataclass(frozen=True)
class OwnWords(Vocabulary):
    """Whole words of the texts to train on."""

    minimum_count: int
    """How often the texts have a word at least."""
    limit: int | None = None
    """The number of words and special tokens; None: all."""
    file: str | None = None
    """The file or folder with the vectors of the words; None: the source's table."""

    def __str__(self) -> str:
        limit = "" if self.limit is None else f", student.vocabulary={self.limit}"
        file = "" if self.file is None else f", {SETTING}={self.file}"
        return f"student.tokenizer=words, student.minimum_count={self.minimum_count}{limit}{file}"

    def plan(self, source: Pretrained, tokens: TokenSet, text: TextBlocks) -> "WordPlan":
        """See `Vocabulary`. Raises DataError for a file that cannot be read, or that covers too few words."""
        special = _SpecialTokens.of(source.tokenizer())
        tokenizer = word_tokenizer(
            texts_to_count(text),
            special=special.texts,
            unknown=special.unknown,
            lowercase=_is_lowercased(source.tokenizer()),
            minimum_count=self.minimum_count,
            limit=self.limit,
        )
        rules = json.loads(tokenizer.to_str())
        rules["post_processor"] = special.post_processor
        words = words_of(rules, special.texts)
        return WordPlan(self, source, special, rules, None if self.file is None else self._read(self.file, words))

    def _read(self, name: str, words: Sequence[str]) -> "_Vectors":
        files = find_vectors(name)
        spellings = {word: _spellings(word) for word in words}
        found = files.read({each for tried in spellings.values() for each in tried})
        rows = {word: row for row, word in enumerate(found.words)}
        row_of_word = {
            word: next(rows[each] for each in tried if each in rows)
            for word, tried in spellings.items()
            if any(each in rows for each in tried)
        }
        covered = len(row_of_word) / len(words)
        if covered < LEAST_COVERED:
            missing = next(word for word in words if word not in row_of_word)
            raise DataError(
                f"{SETTING} {name}: it has vectors for {covered:.1%} of the {len(words):,} words of the texts to train "
                f"on, and not for {missing!r}; at least {LEAST_COVERED:.0%} must be there. Give vectors for the "
                "language of the texts, or student.embeddings='source'."
            )
        return _Vectors(files.key, found, row_of_word)


@dataclass(frozen=True)
class _Vectors:
    """The vectors of a file."""

    key: str
    """A fingerprint of the file."""
    found: WordVectors
    row_of_word: Mapping[str, int]
    """Word -> the row of its vector in `found`."""


@dataclass(frozen=True)
class _SpecialTokens:
    """The special tokens of a source, in the order of their ids."""

    texts: tuple[str, ...]
    ids: tuple[int | None, ...]
    """Their ids in the source; None: the source has no such token."""
    unknown: str
    arguments: Mapping[str, Any]
    """The arguments of a tokenizer's class that name them, and its other settings."""
    post_processor: Any
    """What adds them to a text, with their new ids, as tokenizer.json has it."""

    @classmethod
    def of(cls, tokenizer: Any) -> "_SpecialTokens":
        """The special tokens of this tokenizer."""
        rules = json.loads(tokenizer.backend_tokenizer.to_str()) if getattr(tokenizer, "is_fast", False) else {}
        numbers = sorted({*tokenizer.all_special_ids, *ids_in(rules.get("post_processor"))})
        texts = tokenizer.convert_ids_to_tokens(numbers)
        unknown = tokenizer.unk_token or UNKNOWN
        new = [] if unknown in texts else [unknown]
        names = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        return cls(
            texts=(*texts, *new),
            ids=(*numbers, *[None] * len(new)),
            unknown=unknown,
            arguments={
                **names,
                "unk_token": unknown,
                "model_max_length": tokenizer.model_max_length,
                "model_input_names": tokenizer.model_input_names,
            },
            post_processor=renumbered(rules.get("post_processor"), {old: place for place, old in enumerate(numbers)}),
        )


@dataclass(frozen=True)
class WordPlan(VocabularyPlan):
    """The words of the texts."""

    vocabulary: OwnWords
    source: Pretrained
    special: _SpecialTokens
    rules: dict[str, Any]
    """The content of tokenizer.json."""
    vectors: _Vectors | None
    """None: the words have the embeddings of their pieces in the source."""

    @cached_property
    def words(self) -> list[str]:
        """The words, in the order of their ids."""
        return words_of(self.rules, self.special.texts)

    @property
    def files(self) -> dict[str, str]:
        """See `VocabularyPlan`."""
        return {} if self.vectors is None else {f"{SETTING} {self.vocabulary.file}": self.vectors.key}

    def derive(self, source: Pretrained, paths: StoragePaths) -> Pretrained:
        """See `VocabularyPlan`."""
        key = fingerprint("words", FORMAT, source.key, self.rules, self.vectors and self.vectors.key)

        def make(target: Path) -> None:
            model = source.model()
            table_WxE = self._table_of_pieces(model, source.tokenizer()) if self.vectors is None else self._table()
            save_model(_carrier(model, table_WxE, self.special), self._tokenizer(), target)

        return Pretrained(cached_folder(paths.model(key), make), key)

    def describe(self, before: TokenSet, after: TokenSet) -> str:
        """See `VocabularyPlan`."""
        counts_W = count_uses(after, len(self.special.texts) + len(self.words))
        of_words_W = counts_W[len(self.special.texts) :]
        unknown = int(counts_W[self.special.texts.index(self.special.unknown)])
        total = max(1, int(of_words_W.sum()) + unknown)
        sentence = (
            f"{self.vocabulary}: the vocabulary has {len(self.words):,} words and {len(self.special.texts)} special "
            f"tokens; {unknown / total:.2%} of the words of the texts to train on are unknown"
        )
        if self.vectors is None:
            return f"{sentence}."
        has_vector_W = np.array([word in self.vectors.row_of_word for word in self.words])
        return (
            f"{sentence}. The file has vectors for {has_vector_W.mean():.1%} of the vocabulary, which are "
            f"{of_words_W[has_vector_W].sum() / total:.1%} of the words of the texts; the other embeddings are drawn."
        )

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer.from_str(json.dumps(self.rules))
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **self.special.arguments)

    def _table(self) -> Tensor:
        """The vectors of the file (W x E); those that it lacks are drawn, with the spread of the others."""
        assert self.vectors is not None
        found_FxE = self.vectors.found.vectors_WxE
        size = len(self.special.texts) + len(self.words)
        drawn = np.random.default_rng(0).standard_normal((size, found_FxE.shape[1]), np.float32)
        table_WxE = drawn * found_FxE.std()
        for place, word in enumerate(self.words, start=len(self.special.texts)):
            if (row := self.vectors.row_of_word.get(word)) is not None:
                table_WxE[place] = found_FxE[row]
        return torch.from_numpy(table_WxE)

    def _table_of_pieces(self, model: PreTrainedModel, tokenizer: Any) -> Tensor:
        """The mean of the source's embeddings of the pieces of each word (W x E); special tokens have their own."""
        table_VxE = source_table(model).float()
        mean_E = table_VxE.mean(dim=0)
        rows = [mean_E if number is None else table_VxE[number] for number in self.special.ids]
        for start in range(0, len(self.words), WORDS_AT_ONCE):
            # Behind a space, because many tokenizers encode the first word of a text otherwise.
            texts = [f" {word}" for word in self.words[start : start + WORDS_AT_ONCE]]
            for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
                rows.append(table_VxE[ids].mean(dim=0) if ids else mean_E)
        return torch.stack(rows)


def _carrier(source: PreTrainedModel, table_WxE: Tensor, special: _SpecialTokens) -> PreTrainedModel:
    """A model with this embedding table and the outputs of the source; its own layers have no meaning."""
    config = RecurrentConfig(
        vocab_size=table_WxE.shape[0],
        embedding_width=table_WxE.shape[1],
        width=1,
        pad_token_id=special.texts.index(special.arguments["pad_token"]),
        id2label=dict(source.config.id2label),
        label2id=dict(source.config.label2id),
        problem_type=source.config.problem_type,
        dtype=torch.float32,
    )
    head = head_of(source.config) or "ForSequenceClassification"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = OWN_MODELS[RecurrentConfig][head](config)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(table_WxE)
    return model


def _is_lowercased(tokenizer: Any) -> bool:
    """Whether this tokenizer reads capitals as small letters."""
    capitals, small = tokenizer(["FILM", "film"], add_special_tokens=False)["input_ids"]
    return bool(capitals == small)


def _spellings(word: str) -> tuple[str, ...]:
    """The word as a file of vectors may have it, the first choice first."""
    straight = word.replace("\u2019", "'")
    return tuple(dict.fromkeys((word, straight, word.lower(), straight.lower())))
