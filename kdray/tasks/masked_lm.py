"""Masked language models: some tokens of a text are masked, and the model says which they were.

Shapes: L tokens of a text or block, P places of it that may be masked, M masked ones, B blocks with their copies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal
from zlib import crc32

import numpy as np
from pydantic import Field

from kdray.data.masking import Masking, row_keys
from kdray.data.task_data import Encoded, TextColumns
from kdray.errors import SpecError, TeacherError
from kdray.tasks.answers import PREDICTED, PROBABILITY, LoadedStudent, Progress
from kdray.tasks.language_model import LanguageModel, token_ids
from kdray.tasks.serving import Serving
from kdray.tasks.texts import check_max_length
from kdray.tasks.token_answers import CANDIDATES, MASK, SHOWN, FilledText, fill_masks
from kdray.tasks.usage import mask_code, onnx_mask_code
from kdray.tasks.windows import TOKEN_TYPES, frame_of, spare_token

SEED = 18
"""The first number of every seed of stored masks."""


class MaskedLM(LanguageModel):
    """The texts, their blocks, and how their tokens are masked."""

    kind: Literal["masked_lm"] = "masked_lm"
    mask_share: float = Field(0.15, gt=0, lt=1)
    """The share of the tokens of a block that the model has to guess; at least one."""
    whole_words: bool = False
    """Whether all tokens of a word are masked together."""
    maskings: int | None = Field(None, ge=1)
    """How many maskings of each text are stored, with the teacher's answers to them; an epoch reads one of each text.
    None: the texts are masked anew in each epoch, and the teacher runs in the slots while students are trained."""

    head: ClassVar[str] = "ForMaskedLM"
    pipeline: ClassVar[str] = "fill-mask"

    @property
    def name(self) -> str:
        """See `Task`."""
        return "masked language modelling"

    @property
    def cache_key(self) -> tuple[Any, ...]:
        """See `Task`."""
        return (self.name, self.top_k, self.mask_share, self.whole_words, self.maskings)

    def layout(self, tokenizer: Any) -> dict[str, Any]:
        """See `TaskData`."""
        masking = self._masking(tokenizer) if self.maskings is None else None
        return {"top_k": self.top_k, "repeats": self.maskings or 1, "masking": masking}

    def encode(self, tokenizer: Any, columns: TextColumns, for_training: bool = False) -> Encoded:
        """See `TaskData`. Each text becomes its blocks; each block is masked, unless it is masked in each epoch anew.

        Special tokens that stand in the text itself are never masked. Raises SpecError for a tokenizer without a mask
        token, for one that does not know words if whole words are masked, and for blocks that its model cannot read;
        raises TeacherError for a tokenizer that is not fast.
        """
        _check_fast(tokenizer)
        masking = self._masking(tokenizer)
        cutter = _Cutter(self, tokenizer)
        copies = (self.maskings or 1) if for_training else 1
        is_whole = for_training and self.maskings is None
        encoded = token_ids(tokenizer, columns["text"])
        blocks: list[_Block] = []
        for row, ids in enumerate(encoded["input_ids"]):
            words = encoded.word_ids(row) if self.whole_words else None  # type: ignore[attr-defined]
            of_text = cutter.blocks(row, ids, words)
            blocks += of_text if is_whole else _masked(masking, of_text, copies)
        return Encoded(
            inputs=cutter.inputs(blocks),
            places=[(block.places_P + len(cutter.frame.before)).tolist() for block in blocks],
            rows=[block.row for block in blocks],
            gold=[block.gold_P.tolist() for block in blocks],
            begins=[block.begins_P.tolist() for block in blocks] if is_whole and self.whole_words else None,
        )

    def reply(self, student: LoadedStudent, columns: TextColumns, on_progress: Progress) -> list[FilledText]:
        """The most probable tokens at the masks of each text. Raises DataError for a text without a mask."""
        return fill_masks(student, columns["text"], self.block, on_progress)

    def answer_columns(self, labels: Sequence[str]) -> tuple[str, ...]:
        """See `Task`."""
        return (PREDICTED, PROBABILITY, CANDIDATES)

    def predicts(self, labels: Sequence[str]) -> str:
        """See `Task`."""
        return "the tokens at the masks of a text"

    def pytorch_code(self, labels: Sequence[str]) -> str:
        """See `Task`."""
        return mask_code()

    def onnx_code(self, file: str) -> str:
        """See `Task`."""
        return onnx_mask_code(file, self.block)

    def serving(self, labels: Sequence[str]) -> Serving:
        """See `Task`: the candidates of each mask, also of several masks, and in texts of any length."""
        candidate = {"token": "string", "score": "double"}
        mask = {**candidate, "candidates": [candidate]}
        return Serving({"masks": [mask]}, {"answers": "masks", "mask": MASK, "candidates": SHOWN})

    def _masking(self, tokenizer: Any) -> Masking:
        if tokenizer.mask_token_id is None:
            raise SpecError(
                f"task.kind: got {self.kind}, but the tokenizer of this model, {type(tokenizer).__name__}, has no mask "
                "token. Give a model that was trained with masks, such as BERT, or set task.kind=causal_lm."
            )
        return Masking(self.mask_share, tokenizer.mask_token_id, len(tokenizer))


@dataclass(frozen=True)
class _Block:
    """A block of a text, without the special tokens around it."""

    row: int
    """The number of the text."""
    ids_L: np.ndarray
    """Its tokens, int64, as the model reads them."""
    places_P: np.ndarray
    """The tokens that are answers: all that may be masked, or those that are."""
    gold_P: np.ndarray
    """What stands at these places in the text."""
    begins_P: np.ndarray
    """Whether a word begins there; always, where words have no meaning."""


class _Cutter:
    """Cuts texts into blocks, and puts special tokens around them."""

    def __init__(self, task: MaskedLM, tokenizer: Any) -> None:
        self.frame = frame_of(tokenizer)
        self._room = task.block - self.frame.size
        self._has_types = TOKEN_TYPES in tokenizer.model_input_names
        # A text without tokens still is a row, and a model reads at least one token; it is no answer.
        self._spare = [] if self.frame.size else [spare_token(tokenizer)]
        # An unknown word is a word of the text.
        self._special = np.array(sorted({*tokenizer.all_special_ids} - {tokenizer.unk_token_id}), np.int64)
        check_max_length(task.block, tokenizer, task.length_setting)
        if self._room < 1:
            raise SpecError(
                f"task.block: got {task.block}; this model adds {self.frame.size} tokens to each block. Give at least "
                f"{self.frame.size + 1}."
            )
        if task.whole_words and len({*tokenizer("a a", add_special_tokens=False).word_ids()}) < 2:
            raise SpecError(
                f"task.whole_words: the tokenizer of this model, {type(tokenizer).__name__}, does not divide a text "
                "into words. Set task.whole_words=false."
            )

    def blocks(self, row: int, ids: Sequence[int], words: Sequence[int | None] | None) -> list[_Block]:
        """The blocks of the text with this number; `words` has the word of each token, as `tokenizers` counts them."""
        ids_L = np.array(ids or self._spare, np.int64)
        is_answer_L = ~np.isin(ids_L, self._special) & bool(ids)
        begins_L = np.ones(len(ids_L), bool)
        if words:
            # A special token in the text has no word.
            word_L = np.array([-1 if word is None else word for word in words])
            begins_L[1:] = word_L[1:] != word_L[:-1]
        found = []
        for start in range(0, max(1, len(ids_L)), self._room):
            part = slice(start, start + self._room)
            places_P = np.flatnonzero(is_answer_L[part])
            found.append(_Block(row, ids_L[part], places_P, ids_L[part][places_P], begins_L[part][places_P]))
        return found

    def inputs(self, blocks: Sequence[_Block]) -> dict[str, list[list[int]]]:
        """The inputs of the model for each block, with special tokens."""
        inputs = {"input_ids": [self.frame.around(block.ids_L.tolist()) for block in blocks]}
        if self._has_types:
            inputs[TOKEN_TYPES] = [self.frame.types_around(len(block.ids_L)) for block in blocks]
        return inputs


def _masked(masking: Masking, blocks: Sequence[_Block], copies: int) -> Iterator[_Block]:
    """Each block so many times, each time with other masks; its answers are the masked tokens."""
    copied = [block for block in blocks for _ in range(copies)]
    # The masks of a block depend on nothing but its tokens, and on which of its maskings this is.
    checksums_B = np.array([crc32(block.ids_L.tobytes()) for block in copied], np.uint64)
    keys_B = row_keys(SEED, checksums_B, np.tile(np.arange(copies), len(blocks)))
    counts_B = np.array([len(block.places_P) for block in copied])
    gold_P, begins_P = (np.concatenate(parts) for parts in zip(*((b.gold_P, b.begins_P) for b in copied), strict=True))
    chosen_M, masked_M = masking.mask(keys_B, counts_B, gold_P, begins_P)
    starts_B = np.cumsum(counts_B) - counts_B
    ends = np.searchsorted(chosen_M, starts_B[1:])
    parts = zip(copied, starts_B, np.split(chosen_M, ends), np.split(masked_M, ends), strict=True)
    for block, start, chosen, tokens in parts:
        places_P = block.places_P[chosen - start]
        ids_L = block.ids_L.copy()
        ids_L[places_P] = tokens
        yield replace(block, ids_L=ids_L, places_P=places_P, gold_P=block.ids_L[places_P])


def _check_fast(tokenizer: Any) -> None:
    """Raise TeacherError for a tokenizer that does not say which tokens it puts around a text."""
    if not tokenizer.is_fast:
        raise TeacherError(
            f"the tokenizer of this model, {type(tokenizer).__name__}, does not say which tokens are special. Masks "
            "need a fast tokenizer, one with a file tokenizer.json. Give another model."
        )
