"""What a masked language model puts in the place of masks, for people.

Shapes: M masks of a row, V tokens of the vocabulary.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from kdray.data.task_data import Encoded
from kdray.errors import DataError
from kdray.sources.tables import short_repr
from kdray.tasks.answers import PREDICTED, PROBABILITY, LoadedStudent, Progress
from kdray.tasks.windows import TOKEN_TYPES, frame_of

MASK = "[MASK]"
"""What a user may write for a mask, whatever the mask token of the tokenizer is."""
CANDIDATES = "candidates"
"""The column with the most probable tokens."""
SHOWN = 5
"""How many of the most probable tokens are an answer."""
LOGITS_AT_ONCE = 2**26
"""The most logits of a vocabulary that a batch has: 256 MiB in float32. A graph gives those of all tokens."""


@dataclass(frozen=True)
class Candidate:
    """A token that may stand in the place of a mask."""

    token: str
    probability: float


@dataclass(frozen=True)
class FilledText:
    """The most probable tokens at each mask of a text, the most probable one first."""

    masks: tuple[tuple[Candidate, ...], ...]

    @property
    def text(self) -> str:
        """The most probable token of each mask, with spaces between them."""
        return " ".join(candidates[0].token for candidates in self.masks)

    @property
    def probability(self) -> float:
        """The probability of these tokens together: a masked model fills each mask independently of the others."""
        return prod(candidates[0].probability for candidates in self.masks)

    def cells(self) -> list[str]:
        """The tokens, their probability, and for each mask its candidates."""
        masks = (", ".join(f"{each.token} {each.probability:.4f}" for each in mask) for mask in self.masks)
        return [self.text, f"{self.probability:.4f}", *masks]

    def columns(self) -> dict[str, Any]:
        """The tokens, their probability, and a list of candidates for each mask."""
        lists = [
            [asdict(each) | {"probability": round(each.probability, 6)} for each in candidates]
            for candidates in self.masks
        ]
        return {PREDICTED: self.text, PROBABILITY: round(self.probability, 6), CANDIDATES: lists}


def fill_masks(student: LoadedStudent, texts: Sequence[str], block: int, on_progress: Progress) -> list[FilledText]:
    """Fill the masks of each text; a text of more than `block` tokens is read in windows around its masks.

    Raises DataError for a text without a mask.
    """
    tokenizer = student.tokenizer
    encoded = _encode(tokenizer, texts, block)
    longest = max(map(len, encoded.inputs["input_ids"]), default=1)
    at_once = max(1, LOGITS_AT_ONCE // (longest * len(tokenizer)))
    masks_of_row = student.read_rows(encoded, partial(_candidates, tokenizer), on_progress, at_once)
    found: list[list[tuple[Candidate, ...]]] = [[] for _ in texts]
    for row, masks in zip(encoded.rows or (), masks_of_row, strict=True):
        found[row] += masks
    return [FilledText(tuple(masks)) for masks in found]


def _encode(tokenizer: Any, texts: Sequence[str], block: int) -> Encoded:
    """The windows of each text; their places are the masks."""
    frame = frame_of(tokenizer)
    with_masks = [text.replace(MASK, tokenizer.mask_token) for text in texts]
    ids_of_text = tokenizer(with_masks, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    inputs: dict[str, list[list[int]]] = {"input_ids": []}
    if TOKEN_TYPES in tokenizer.model_input_names:
        inputs[TOKEN_TYPES] = []
    places, rows = [], []
    for row, ids in enumerate(ids_of_text):
        masks = [place for place, token in enumerate(ids) if token == tokenizer.mask_token_id]
        if not masks:
            raise DataError(
                f"{short_repr(texts[row])}: this student fills masks, and the text has none. Write {MASK} in the place "
                "of each token to find."
            )
        for begin, end, inside in _windows(masks, len(ids), block - frame.size):
            inner = ids[begin:end]
            inputs["input_ids"].append(frame.around(inner))
            if TOKEN_TYPES in inputs:
                inputs[TOKEN_TYPES].append(frame.types_around(len(inner)))
            places.append([mask - begin + len(frame.before) for mask in inside])
            rows.append(row)
    return Encoded(inputs, places, rows)


def _windows(masks: Sequence[int], size: int, room: int) -> Iterator[tuple[int, int, Sequence[int]]]:
    """First token, the token behind the last one, and the masks of each window of a text of `size` tokens.

    A mask has at least a quarter of a window on both sides, as far as the text reaches.
    """
    context, first = room // 4, 0
    while first < len(masks):
        begin = max(0, min(masks[first] - context, size - room))
        end = min(begin + room, size)
        behind = bisect_left(masks, end if end == size else end - context)
        yield begin, end, masks[first:behind]
        first = behind


def _candidates(tokenizer: Any, logits_MxV: Tensor) -> list[tuple[Candidate, ...]]:
    """The most probable tokens at each mask."""
    best = torch.softmax(logits_MxV, dim=-1).topk(min(SHOWN, logits_MxV.shape[-1]), dim=-1)
    return [
        tuple(
            Candidate(tokenizer.decode([token]).strip(), probability)
            for token, probability in zip(tokens, probabilities, strict=True)
        )
        for tokens, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
