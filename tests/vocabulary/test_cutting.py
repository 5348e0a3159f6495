"""A tokenizer with the most used pieces alone reads texts of these pieces as before."""

import json
import random
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from kdray.errors import SpecError
from kdray.vocabulary.cutting import Cut, Pieces
from tests.vocabulary.tiny_tokenizers import TEXTS, TOKENIZERS, WORDS, roberta_tokenizer, rules_of

every_kind = pytest.mark.parametrize("kind", TOKENIZERS)


def pieces_of(tokenizer: Any, **changes: Any) -> Pieces:
    return Pieces({**rules_of(tokenizer), **changes}, tokenizer.pad_token_id, tokenizer.all_special_ids)


def uses(tokenizer: Any, texts: tuple[str, ...] = TEXTS) -> np.ndarray:
    return np.bincount(np.concatenate(tokenizer(list(texts))["input_ids"]), minlength=len(tokenizer))


def load(cut: Cut) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(cut.rules()))


@every_kind
@pytest.mark.parametrize("more", [4, 12])
def test_texts_of_kept_pieces_are_read_as_before(kind: str, more: int) -> None:
    tokenizer = TOKENIZERS[kind]()
    pieces = pieces_of(tokenizer)
    cut = pieces.most_used(uses(tokenizer), len(pieces.must_stay) + more)
    smaller, draw = load(cut), random.Random(0)
    compared = 0
    for _ in range(800):
        # é is in no vocabulary.
        text = " ".join(draw.choices((*WORDS, "x", "zz", "café", "foxplayer"), k=draw.randint(1, 3)))
        before = tokenizer(text)["input_ids"]
        if set(before) <= set(cut.ids):
            assert [cut.ids[new] for new in smaller.encode(text).ids] == before, text
            compared += 1
    assert compared > 50


@every_kind
def test_the_most_used_pieces_are_kept(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    pieces, counts = pieces_of(tokenizer), uses(tokenizer)
    limit = len(pieces.must_stay) + 6
    cut = pieces.most_used(counts, limit)
    assert len(cut.ids) == len(set(cut.ids)) == limit
    assert pieces.must_stay <= set(cut.pieces)
    assert load(cut).get_vocab() == {piece: new for new, piece in enumerate(cut.pieces)}
    # The most used piece of all stays, and no piece goes that is used more than every chosen one.
    by_choice = [counts[number] for piece, number in pieces.ids.items() if piece in {*cut.pieces} - pieces.must_stay]
    removed = [counts[number] for piece, number in pieces.ids.items() if piece not in cut.pieces]
    assert max(by_choice) >= max(removed)
    assert sum(by_choice) > 0


@every_kind
def test_special_tokens_keep_their_meaning(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    pieces = pieces_of(tokenizer)
    cut = pieces.most_used(uses(tokenizer), len(pieces.must_stay))
    smaller = load(cut)
    # Positions are counted from the padding token's id on by some models.
    assert smaller.token_to_id(tokenizer.pad_token) == tokenizer.pad_token_id
    added = tokenizer.backend_tokenizer.encode("", "").ids
    assert [cut.ids[new] for new in smaller.encode("", "").ids] == added
    for token in tokenizer.all_special_tokens:
        assert cut.ids[smaller.token_to_id(token)] == tokenizer.convert_tokens_to_ids(token)
        assert cut.ids[smaller.encode(token, add_special_tokens=False).ids[0]] in tokenizer.all_special_ids


@every_kind
def test_all_pieces_are_the_same_tokenizer(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    pieces = pieces_of(tokenizer)
    cut = pieces.most_used(uses(tokenizer), len(pieces))
    assert cut.ids == tuple(range(len(tokenizer)))
    smaller = load(cut)
    assert smaller.get_vocab() == tokenizer.get_vocab()
    assert [smaller.encode(text).ids for text in TEXTS] == tokenizer(list(TEXTS))["input_ids"]


@pytest.mark.parametrize("kind", sorted(TOKENIZERS.keys() - {"WordLevel"}))  # which looks up whole words
def test_characters_stay_so_that_no_text_of_them_becomes_unknown(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    pieces = pieces_of(tokenizer)
    smaller = load(pieces.most_used(uses(tokenizer), len(pieces.must_stay)))
    for text in TEXTS:
        assert tokenizer.unk_token not in smaller.encode(text).tokens


def test_a_piece_needs_what_its_merges_make() -> None:
    """Unused in themselves, they stay for a piece that is used; they count in the limit."""
    tokenizer = roberta_tokenizer()
    pieces = pieces_of(tokenizer)
    counts = np.zeros(len(tokenizer), np.int64)
    counts[tokenizer.convert_tokens_to_ids("Ġplayers")] = 5
    cut = pieces.most_used(counts, len(pieces.must_stay) + 10)
    assert "Ġplayers" in cut.pieces
    assert load(cut).encode("x players").tokens[2] == "Ġplayers"
    too_few = pieces.most_used(counts, len(pieces.must_stay) + 1)
    assert "Ġplayers" not in too_few.pieces


def test_the_padding_token_keeps_its_id_among_other_pieces() -> None:
    """RoBERTa and similar models count positions from it on."""
    words = ["never", "used", "<pad>", "<unk>", "a", "b", "film"]
    model = {"type": "WordLevel", "vocab": {word: number for number, word in enumerate(words)}, "unk_token": "<unk>"}
    pieces = Pieces({"model": model, "added_tokens": []}, padding=2)
    cut = pieces.most_used(np.array([0, 0, 0, 0, 1, 1, 5]), 5)
    assert cut.pieces == ("<unk>", "a", "<pad>", "b", "film")
    assert cut.ids == (3, 4, 2, 5, 6)


def test_merges_of_older_files_are_read() -> None:
    tokenizer = roberta_tokenizer()
    rules = rules_of(tokenizer)
    older = {**rules["model"], "merges": [" ".join(pair) for pair in rules["model"]["merges"]]}
    limit = len(pieces_of(tokenizer).must_stay) + 20
    cuts = [
        each.most_used(uses(tokenizer), limit) for each in (pieces_of(tokenizer), pieces_of(tokenizer, model=older))
    ]
    assert cuts[0].rules() == cuts[1].rules()


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        (361, "got 361, but the tokenizer .* has 360 pieces. Allowed are 261 to 360"),
        (260, "got 260, but 261 pieces must stay: special tokens, and single characters"),
    ],
)
def test_a_limit_that_is_not_possible_is_refused(limit: int, reason: str) -> None:
    tokenizer = roberta_tokenizer()
    with pytest.raises(SpecError, match=rf"student\.vocabulary: {reason}"):
        pieces_of(tokenizer).most_used(uses(tokenizer), limit)
