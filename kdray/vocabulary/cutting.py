"""The most used pieces of a tokenizer, and the tokenizer that has no others.

Only the JSON of fast tokenizers is changed (tokenizer.json, the form of the library `tokenizers`). Ids are numbered
again, from 0 without gaps. Array names: V ids of a tokenizer.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kdray.errors import SpecError
from kdray.vocabulary.piece_kinds import KINDS, PieceKind


class Pieces:
    """All pieces of a fast tokenizer: those of its model, and those that were added to it, such as special tokens."""

    def __init__(self, rules: Mapping[str, Any], padding: int | None = None, needed: Collection[int] = ()) -> None:
        """`rules` is the content of tokenizer.json, `padding` the id of the padding token.

        `needed` are the ids of pieces that must stay because something else names them.
        """
        self._rules, self._padding = rules, padding
        self._kind: PieceKind = KINDS[rules["model"]["type"]](rules["model"])
        self._in_model = self._kind.ids
        added = {token["content"]: token["id"] for token in rules.get("added_tokens") or []}
        self.ids: dict[str, int] = {**self._in_model, **added}
        """Piece -> id."""
        named = {*needed, *ids_in(rules.get("post_processor")), *added.values()}
        if padding is not None:
            named.add(padding)
        self._needed = {piece for piece, number in self.ids.items() if number in named}

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def must_stay(self) -> set[str]:
        """The pieces that every smaller tokenizer has."""
        return self._kind.must_stay() | self._needed

    def most_used(self, counts_V: np.ndarray, limit: int) -> "Cut":
        """The `limit` pieces that are used most, with all that must stay and all that a kept piece is made of.

        Of pieces that are used equally often, the one with the lower id stays. Raises SpecError for a limit that is
        larger than the number of pieces, or too small for those that must stay.
        """
        if limit > len(self):
            raise SpecError(
                f"student.vocabulary: got {limit:,}, but the tokenizer of the model that the student is built from has "
                f"{len(self):,} pieces. Allowed are {len(self.must_stay):,} to {len(self):,}, or None for all."
            )
        if limit < len(self.must_stay):
            raise SpecError(
                f"student.vocabulary: got {limit:,}, but {len(self.must_stay):,} pieces must stay: special tokens, and "
                f"single characters, without which texts would become unknown. Allowed are {len(self.must_stay):,} to "
                f"{len(self):,}, or None for all."
            )
        kept = set(self.must_stay)
        for piece in sorted(self.ids, key=lambda piece: (-int(counts_V[self.ids[piece]]), self.ids[piece])):
            if len(kept) == limit:
                break
            needed = self._kind.parts(piece) - kept
            if len(kept) + len(needed) <= limit:
                kept |= needed
        return self._cut(kept)

    def _cut(self, kept: set[str]) -> "Cut":
        # Added tokens that the model does not have are numbered behind its pieces by the library.
        ordered = sorted(kept, key=lambda piece: (piece not in self._in_model, self.ids[piece]))
        ids = [self.ids[piece] for piece in ordered]
        # RoBERTa and similar models count positions from the id of the padding token on, so that id must not change.
        if self._padding in ids and self._padding < len(kept & self._in_model.keys()):
            place = ids.index(self._padding)
            ordered.insert(self._padding, ordered.pop(place))
            ids.insert(self._padding, ids.pop(place))
        return Cut(self._rules, self._kind, tuple(ids), tuple(ordered))


@dataclass(frozen=True)
class Cut:
    """A tokenizer with some pieces of another one."""

    _rules: Mapping[str, Any]
    _kind: PieceKind
    ids: tuple[int, ...]
    """The ids of the kept pieces in the other tokenizer; the place of each is its new id."""
    pieces: tuple[str, ...]
    """The kept pieces, in the order of their new ids."""

    @cached_property
    def new_ids(self) -> dict[int, int]:
        """Id in the other tokenizer -> new id."""
        return {old: new for new, old in enumerate(self.ids)}

    def rules(self) -> dict[str, Any]:
        """The content of tokenizer.json."""
        in_model = self._kind.ids
        kept = {piece: new for new, piece in enumerate(self.pieces) if piece in in_model}
        added = [{**token, "id": self.new_ids[token["id"]]} for token in self._rules.get("added_tokens") or []]
        padding = self._rules.get("padding")
        return {
            **self._rules,
            "model": self._kind.without_others(kept),
            "added_tokens": sorted(added, key=lambda token: int(token["id"])),
            "post_processor": renumbered(self._rules.get("post_processor"), self.new_ids),
            "padding": padding and {**padding, "pad_id": self.new_ids[padding["pad_id"]]},
        }


def ids_in(processor: Any) -> set[int]:
    """The ids of the tokens that this post-processor, as tokenizer.json has it, adds to a text."""
    if not processor:
        return set()
    own = {processor[name][1] for name in ("cls", "sep") if name in processor}
    template = processor.get("special_tokens") or {}
    listed = {number for token in template.values() for number in token["ids"]}
    return own | listed | {number for each in processor.get("processors") or [] for number in ids_in(each)}


def renumbered(processor: Any, new_ids: Mapping[int, int]) -> Any:
    """The post-processor with the new ids of the tokens that it adds."""
    if not processor:
        return processor
    changed = dict(processor)
    for name in ("cls", "sep"):
        if name in changed:
            changed[name] = [changed[name][0], new_ids[changed[name][1]]]
    if "special_tokens" in changed:
        changed["special_tokens"] = {
            name: {**token, "ids": [new_ids[number] for number in token["ids"]]}
            for name, token in changed["special_tokens"].items()
        }
    if "processors" in changed:
        changed["processors"] = [renumbered(each, new_ids) for each in changed["processors"]]
    return changed
