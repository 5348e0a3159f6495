"""The most used pieces of a source: a smaller embedding table and a smaller tokenizer, with ids that are numbered anew.

The derived source answers as the source does for texts whose pieces are all kept. In array names: V ids of a tokenizer.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel
from transformers.initialization import no_init_weights

from kdray.data.tokens import TextBlocks, TokenSet
from kdray.errors import TeacherError
from kdray.models.checks import errors_of_transformers
from kdray.models.pretrained import Pretrained, cached_folder, save_model
from kdray.sources.tables import short_repr
from kdray.storage.files import fingerprint
from kdray.storage.paths import StoragePaths
from kdray.students.vocabularies import Vocabulary, VocabularyPlan
from kdray.tasks.task import LARGEST_LOGIT_DIFFERENCE
from kdray.vocabulary.counting import Change, count_uses, measure_change
from kdray.vocabulary.cutting import Cut, Pieces

FORMAT = 1
"""Part of every key: increase it when derived sources change, so that older ones are not read."""
CHECK_TOKENS = 8
"""Tokens of the text that the source and the derived source read for comparison: few enough for every table of
positions."""


@dataclass(frozen=True)
class MostUsedPieces(Vocabulary):
    """The pieces that the texts to train on use most."""

    limit: int
    """The number of pieces, with those that must stay."""

    def __str__(self) -> str:
        return f"student.vocabulary={self.limit}"

    def plan(self, source: Pretrained, tokens: TokenSet, text: TextBlocks) -> "KeptPieces":
        """See `Vocabulary`. Raises TeacherError for a tokenizer without a fast form."""
        pieces = pieces_of(source)
        counts_V = count_uses(tokens, max(pieces.ids.values()) + 1)
        return KeptPieces(
            vocabulary=self,
            source=source,
            pieces=pieces,
            cut=pieces.most_used(counts_V, self.limit),
            counts_V=counts_V,
        )


@dataclass(frozen=True)
class KeptPieces(VocabularyPlan):
    """The pieces that stay."""

    vocabulary: MostUsedPieces
    source: Pretrained
    pieces: Pieces
    """All pieces of the source's tokenizer."""
    cut: Cut
    counts_V: np.ndarray
    """How often the texts to train on use each id of the source's tokenizer."""

    def derive(self, source: Pretrained, paths: StoragePaths) -> Pretrained:
        """See `VocabularyPlan`."""
        key = fingerprint("most used pieces", FORMAT, source.key, self.cut.ids)

        def make(target: Path) -> None:
            _write_cut(source, self.cut, target)

        return Pretrained(cached_folder(paths.model(key), make), key)

    def describe(self, before: TokenSet, after: TokenSet) -> str:
        """See `VocabularyPlan`."""
        removed_V = self.counts_V.copy()
        removed_V[list(self.cut.ids)] = 0
        old = self.source.tokenizer().unk_token_id
        unknown = (old, None if old is None else self.cut.new_ids[old])
        change = measure_change(before, after, int(removed_V.sum()), unknown)
        return f"{self.vocabulary}: {self._sizes()}. {self._changes(change, removed_V)}."

    def _sizes(self) -> str:
        table = self.source.outline().get_input_embeddings().weight
        megabytes = [rows * table.shape[1] * 4 / 1e6 for rows in (len(self.cut.ids), table.shape[0])]
        return (
            f"{len(self.cut.ids):,} of the {len(self.pieces):,} pieces stay, and the embedding table has "
            f"{megabytes[0]:.3g} MB instead of {megabytes[1]:.3g} MB"
        )

    def _changes(self, change: Change, removed_V: np.ndarray) -> str:
        if not removed_V.any():
            return "The texts to train on use no other pieces"
        most_used = int(removed_V.argmax())
        piece = next(piece for piece, number in self.pieces.ids.items() if number == most_used)
        return (
            f"Of the tokens of the texts to train on, {change.otherwise:.2%} are cut otherwise and "
            f"{change.unknown:.2%} become unknown, most often {short_repr(piece)}; the texts have "
            f"{change.length:.3g} times as many tokens"
        )


def pieces_of(source: Pretrained) -> Pieces:
    """The pieces of the tokenizer of this model. Raises TeacherError for a tokenizer without a fast form."""
    tokenizer, config = source.tokenizer(), source.config()
    if not getattr(tokenizer, "is_fast", False):
        raise TeacherError(
            f"student.vocabulary: the tokenizer of this {config.model_type} model, {type(tokenizer).__name__}, has no "
            "fast form (tokenizer.json), so its vocabulary cannot be cut. Leave student.vocabulary out, or give a "
            "model with a fast tokenizer."
        )
    special = {*tokenizer.all_special_ids, *(number for _, number in _token_ids(config))}
    return Pieces(json.loads(tokenizer.backend_tokenizer.to_str()), tokenizer.pad_token_id, special)


def _write_cut(source: Pretrained, cut: Cut, target: Path) -> None:
    """Write the model with the embeddings of the kept pieces alone, and their tokenizer, into the folder `target`."""
    model = source.model()
    smaller = _cut_model(model, cut.ids)
    save_model(smaller, source.tokenizer(), target)
    (target / "tokenizer.json").write_text(json.dumps(cut.rules(), ensure_ascii=False), encoding="utf-8")
    # transformers builds the tokenizers of some families from their own code and the pieces of the file alone.
    tokenizer = AutoTokenizer.from_pretrained(target, trust_remote_code=False)
    # Pieces from all over the table, with the special tokens of a text.
    some = tokenizer.decode(range(len(cut.ids) - 1, 0, -max(1, len(cut.ids) // CHECK_TOKENS)), skip_special_tokens=True)
    ids = tokenizer(some, truncation=True, max_length=CHECK_TOKENS)["input_ids"]
    same_pieces = tokenizer.get_vocab() == {piece: new for new, piece in enumerate(cut.pieces)}
    if not same_pieces or not _answer_alike(model, smaller, ids, cut.ids):
        raise TeacherError(
            f"student.vocabulary: with fewer pieces, this {model.config.model_type} model does not answer as before. "
            "Leave student.vocabulary out, or give another model."
        )


def _cut_model(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """The model with the embeddings of the kept ids alone. Raises TeacherError if that is no model of its family."""
    size = model.get_input_embeddings().weight.shape[0]
    if max(kept) >= size:
        raise TeacherError(
            f"student.vocabulary: the tokenizer of this {model.config.model_type} model has pieces without an "
            f"embedding: {max(kept) + 1:,} pieces, but {size:,} embeddings. Give a model with its own tokenizer."
        )
    with errors_of_transformers(
        f"student.vocabulary: the vocabulary of this {model.config.model_type} model cannot be made smaller",
        "Leave student.vocabulary out, or give another model.",
    ):
        # All weights are overwritten, so none is drawn.
        with no_init_weights():
            smaller: PreTrainedModel = type(model)(_cut_config(model.config, kept)).float()
        shapes = {name: weight.shape for name, weight in smaller.state_dict().items()}
        rows = torch.tensor(kept)
        smaller.load_state_dict(
            {name: _cut_weight(weight, shapes.get(name), rows) for name, weight in model.state_dict().items()}
        )
        smaller.tie_weights()
    return smaller.eval()


def _cut_config(config: Any, kept: Sequence[int]) -> Any:
    smaller = copy.deepcopy(config)
    smaller.vocab_size = len(kept)
    new_ids = {old: new for new, old in enumerate(kept)}
    for name, old in _token_ids(config):
        # None for the id of no piece: the same number could be that of a piece now.
        setattr(smaller, name, new_ids.get(old))
    return smaller


def _cut_weight(weight: Tensor, shape: Sequence[int] | None, kept: Tensor) -> Tensor:
    """The weight with the kept rows, or columns, where its shape is that of the vocabulary."""
    for dimension, size in enumerate(shape or ()):
        if weight.shape[dimension] != size:
            weight = weight.index_select(dimension, kept)
    return weight


def _answer_alike(model: PreTrainedModel, smaller: PreTrainedModel, ids: list[int], kept: Sequence[int]) -> bool:
    """Whether both models give the same logits for one text; `ids` are its ids for the smaller one."""
    with torch.inference_mode():
        logits = smaller(input_ids=torch.tensor([ids])).logits
        expected = model(input_ids=torch.tensor([[kept[new] for new in ids]])).logits
    return float((logits - expected).abs().max()) <= LARGEST_LOGIT_DIFFERENCE


def _token_ids(config: Any) -> list[tuple[str, int]]:
    """The entries of a configuration that name a token, such as pad_token_id."""
    entries = config.to_dict().items()
    return [(name, value) for name, value in entries if name.endswith("_token_id") and type(value) is int]
