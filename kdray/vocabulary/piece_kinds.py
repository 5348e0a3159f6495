"""The kinds of fast tokenizers, as the JSON of their `model`: which pieces must stay, and what a piece is made of.

A piece is one entry of a tokenizer's vocabulary: a word, or a part of one. The kinds are those of the library
`tokenizers`. A smaller vocabulary must read a text as before if it has all pieces of the text:

- WordPiece takes the longest piece that fits, from the left: without others, that piece is still the longest.
- Unigram takes the most probable pieces (Kudo 2018, arXiv:1804.10959): without others, they are still these.
- BPE joins neighbours by a list of merges (Sennrich et al. 2016, arXiv:1508.07909): a piece needs all pieces that its
  merges make on the way.
- WordLevel looks up whole words.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""The piece of one byte, into which tokenizers with `byte_fallback` divide characters that they do not know."""


class PieceKind(ABC):
    """The pieces of a tokenizer of one kind."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        """`model` is the entry `model` of tokenizer.json."""
        self._model = model

    @property
    @abstractmethod
    def ids(self) -> dict[str, int]:
        """Piece -> id, of all pieces."""

    @abstractmethod
    def without_others(self, kept: Mapping[str, int]) -> dict[str, Any]:
        """The JSON of the model with these pieces alone; `kept` has their new ids, from 0 without gaps, in order."""

    def must_stay(self) -> set[str]:
        """The pieces without which texts could become unknown: single characters, bytes and the unknown token."""
        unknown = {self._model["unk_token"]} if self._model.get("unk_token") in self.ids else set()
        return unknown | {piece for piece in self.ids if self._is_single(piece)}

    def parts(self, piece: str) -> set[str]:
        """The pieces that this piece needs, itself among them."""
        return {piece}

    def _is_single(self, piece: str) -> bool:
        """Whether the piece is one character or one byte; marks of the beginning or the end of a word do not count."""
        return len(self._bare(piece)) <= 1 or BYTE.fullmatch(piece) is not None

    def _bare(self, piece: str) -> str:
        prefix, suffix = (self._model.get(name) or "" for name in ("continuing_subword_prefix", "end_of_word_suffix"))
        bare = piece.removeprefix(prefix) if piece != prefix else piece
        return bare.removesuffix(suffix) if bare != suffix else bare


class WordLevel(PieceKind):
    """Whole words."""

    @property
    def ids(self) -> dict[str, int]:
        """See `PieceKind`."""
        return dict(self._model["vocab"])

    def without_others(self, kept: Mapping[str, int]) -> dict[str, Any]:
        """See `PieceKind`."""
        return {**self._model, "vocab": dict(kept)}


class WordPiece(WordLevel):
    """Words, and parts behind the first part of a word, which have a prefix (##ing)."""


class BPE(WordLevel):
    """Pieces that are made by merges of two pieces."""

    @cached_property
    def _merges(self) -> list[tuple[str, str]]:
        """The merges, the first one that is possible first."""
        # Files of earlier versions of the library have the two pieces in one string.
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in self._model["merges"])
        return [(first, second) for first, second in pairs]

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {pair: rank for rank, pair in enumerate(self._merges)}

    def parts(self, piece: str) -> set[str]:
        """See `PieceKind`: all pieces that are made on the way from single characters to this piece.

        They are the same in every text: while the piece is made, merges across its ends do not happen, because they
        would have made another piece.
        """
        symbols = self._characters(piece)
        needed = {piece}
        while len(symbols) > 1:
            pairs = [(self._ranks.get(pair, len(self._ranks)), place) for place, pair in enumerate(pairwise(symbols))]
            rank, place = min(pairs)
            if rank == len(self._ranks):
                # The merges do not make it: the tokenizer looks it up as a word (`ignore_merges`), or never gives it.
                return {piece}
            symbols[place : place + 2] = [self._merged(*self._merges[rank])]
            needed.add(symbols[place])
        return needed

    def without_others(self, kept: Mapping[str, int]) -> dict[str, Any]:
        """See `PieceKind`. A merge that needs or makes another piece is left out."""
        merges = [
            [first, second]
            for first, second in self._merges
            if first in kept and second in kept and self._merged(first, second) in kept
        ]
        return {**super().without_others(kept), "merges": merges}

    def _characters(self, piece: str) -> list[str]:
        """The characters that the piece is made of, with the marks that the tokenizer gives them."""
        prefix, suffix = (self._model.get(name) or "" for name in ("continuing_subword_prefix", "end_of_word_suffix"))
        bare = self._bare(piece)
        continues = bool(prefix) and piece.startswith(prefix) and piece != prefix
        symbols = [prefix + character if place or continues else character for place, character in enumerate(bare)]
        if symbols and suffix and piece.endswith(suffix) and piece != suffix:
            symbols[-1] += suffix
        return symbols

    def _merged(self, first: str, second: str) -> str:
        return first + second.removeprefix(self._model.get("continuing_subword_prefix") or "")


class Unigram(PieceKind):
    """Pieces with the logarithms of their probabilities; the id of a piece is its place in the list."""

    @cached_property
    def ids(self) -> dict[str, int]:
        """See `PieceKind`."""
        return {piece: place for place, (piece, _) in enumerate(self._model["vocab"])}

    def must_stay(self) -> set[str]:
        """See `PieceKind`.

        The score of an unknown character is that of the least probable piece, less 10, so it depends on the pieces. But
        it is below that of every piece, so a character is unknown only where no piece has it, as before.
        """
        unknown = self._model.get("unk_id")
        return super().must_stay() | ({self._model["vocab"][unknown][0]} if unknown is not None else set())

    def without_others(self, kept: Mapping[str, int]) -> dict[str, Any]:
        """See `PieceKind`."""
        scores = dict(self._model["vocab"])
        unknown = self._model.get("unk_id")
        new_unknown = None if unknown is None else kept[self._model["vocab"][unknown][0]]
        return {**self._model, "vocab": [[piece, scores[piece]] for piece in kept], "unk_id": new_unknown}


KINDS: Mapping[str, type[PieceKind]] = {kind.__name__: kind for kind in (WordPiece, BPE, Unigram, WordLevel)}
"""The `type` of the model in tokenizer.json -> its class."""
