"""Masked language models: some tokens of a text are masked, and the model says which they were.

Shapes: P places of a block that may be masked, M masked ones.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal
from zlib import crc32

import numpy as np
from pydantic import Field

from kdray.data.masking import Masking
from kdray.data.task_data import Encoded, TextColumns
from kdray.errors import SpecError
from kdray.tasks.language_model import LanguageModel, blocks_of, token_ids
from kdray.tasks.texts import check_max_length
from kdray.tasks.windows import TOKEN_TYPES, Frame, frame_of

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

        Raises SpecError for a tokenizer without a mask token, and for blocks that its model cannot read.
        """
        masking, frame = self._masking(tokenizer), frame_of(tokenizer)
        check_max_length(self.block, tokenizer, "task.block")
        inputs: dict[str, list[list[int]]] = {"input_ids": []}
        if TOKEN_TYPES in tokenizer.model_input_names:
            inputs[TOKEN_TYPES] = []
        places: list[list[int]] = []
        gold: list[list[int]] = []
        begins: list[list[int]] = []
        rows: list[int] = []
        copies = (self.maskings or 1) if for_training else 1
        is_whole = for_training and self.maskings is None
        for row, ids, starts in self._blocks(tokenizer, columns["text"], frame):
            for copy in range(copies):
                chosen, masked = np.arange(len(ids)), np.array(ids)
                if not is_whole:
                    # The masks of a text depend on nothing but the text, and on which of its maskings this is.
                    random = np.random.default_rng([SEED, crc32(masked.tobytes()), copy])
                    chosen = masking.choose(random, len(ids), starts)
                    masked[chosen] = masking.replace(random, masked[chosen])
                _add_framed(inputs, frame, masked.tolist())
                places.append((chosen + len(frame.before)).tolist())
                gold.append(np.array(ids)[chosen].tolist())
                if is_whole and starts is not None:
                    begins.append(starts.tolist())
                rows.append(row)
        return Encoded(inputs, places, rows, gold, begins or None)

    def _blocks(
        self, tokenizer: Any, texts: Sequence[str], frame: Frame
    ) -> Iterator[tuple[int, Sequence[int], np.ndarray | None]]:
        """For each block the number of its text, its tokens, and with `whole_words` where words begin."""
        room = self.block - frame.size
        encoded = token_ids(tokenizer, texts)
        for row, ids in enumerate(encoded["input_ids"]):
            begins = np.array(_word_begins(encoded.word_ids(row)), np.int8) if self.whole_words else None  # type: ignore[attr-defined]
            for start, block in zip(range(0, max(1, len(ids)), room), blocks_of(ids, room), strict=True):
                yield row, block, None if begins is None else begins[start : start + room]

    def _masking(self, tokenizer: Any) -> Masking:
        if tokenizer.mask_token_id is None:
            raise SpecError(
                f"task.kind: got {self.kind}, but the tokenizer of this model, {type(tokenizer).__name__}, has no mask "
                "token. Give a model that was trained with masks, such as BERT, or set task.kind=causal_lm."
            )
        return Masking(self.mask_share, tokenizer.mask_token_id, len(tokenizer))


def _word_begins(words: Sequence[int | None]) -> list[bool]:
    return [True, *(before != word for before, word in pairwise(words))][: len(words)]


def _add_framed(inputs: dict[str, list[list[int]]], frame: Frame, ids: list[int]) -> None:
    """Add a block with the special tokens around it."""
    inputs["input_ids"].append([*frame.before, *ids, *frame.behind])
    if TOKEN_TYPES in inputs:
        inputs[TOKEN_TYPES].append([*frame.types_before, *[frame.type_of_words] * len(ids), *frame.types_behind])
