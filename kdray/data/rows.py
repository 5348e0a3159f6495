"""One split of the token ids, memory-mapped, and padded batches of its rows.

A model gives one answer for each row (the class of a text), or one for each word of it. The answers of all rows have
one order: row after row, and word after word in a row. A long text may be divided into several rows with the same
example id; its answers then follow each other.

Shapes: B rows of a batch, L tokens of its longest row, N rows, A answers, C outputs.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from kdray.data.masking import Masking
from kdray.sources.arrow_types import check_schema

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")

TOKENS_AT_ONCE = 1 << 20
"""The most token ids that are copied at once, to 8 bytes each, when those of all rows are looked through."""


class LogitStore(Protocol):
    """The teacher's logits of a split: `transfer_set.StoredLogits`, or any array."""

    def __getitem__(self, answers: np.ndarray, /) -> np.ndarray:
        """The logits of the answers with these numbers, A x C."""
        ...


@dataclass(frozen=True)
class Batch:
    """Padded rows as tensors: the inputs of a model, and what its loss compares the outputs with."""

    inputs: dict[str, Tensor]
    """input_ids, attention_mask and the tokenizer's other inputs, such as token_type_ids; int64, each B x L."""
    gold: Tensor
    """The right answers: A class numbers or A numbers, or A x C of 0 and 1. See `Rows.gold`."""
    ids: np.ndarray
    """The example id of each row, as in `Rows.ids`."""
    places_A: Tensor | None = None
    """The place of each answer among the B * L tokens of the batch; None: the model gives one answer for each row."""
    teacher_logits_AxC: Tensor | None = None
    """The teacher's logits; of a vocabulary what is kept of them, see `Layout.top_k`."""
    top_k: int | None = None
    """See `Layout.top_k`."""

    def answers(self, logits: Tensor) -> Tensor:
        """The outputs of the answers (A x C), of the model's logits: B x C, or B x L x C if there are places."""
        return logits if self.places_A is None else logits.flatten(0, 1)[self.places_A]

    def to(self, device: torch.device) -> Self:
        """The same batch with its tensors on the device."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            inputs={name: values.to(device, non_blocking=True) for name, values in self.inputs.items()},
            gold=self.gold.to(device, non_blocking=True),
            places_A=move(self.places_A),
            teacher_logits_AxC=move(self.teacher_logits_AxC),
        )


@dataclass(frozen=True)
class Layout:
    """How the rows of a token set are padded."""

    padding: dict[str, int]
    """Name of an input -> its padding value."""
    max_length: int
    """Tokens; no batch is wider."""
    labels: tuple[str, ...] = ()
    """The names of the labels in the order of their numbers."""
    top_k: int | None = None
    """For answers that are tokens of a vocabulary: how many of the most probable ones are kept of a model's outputs, in
    the rows of `kdray.losses.top_k`. None: all outputs are kept."""
    repeats: int = 1
    """How often each text stands in train, each time with other masks; an epoch reads as many rows as there are
    texts."""
    masking: Masking | None = None
    """How the rows of train are masked when they are read, in each pass through them anew. None: they are read as they
    are stored."""


class Rows:
    """One split of a token set: numpy views of a memory-mapped file, which all processes on a node share.

    Pickle stores the name of the file, not the data; the process that unpickles the rows maps the file again.
    """

    def __init__(
        self, file: Path, layout: Layout, logits: LogitStore | None = None, part: tuple[int, int] | None = None
    ) -> None:
        self._arguments = (file, layout, logits, part)
        self._first_row = 0 if part is None else part[0]
        self._layout, self._logits = layout, logits
        table = _map_file(file)
        if part is not None:
            table = table.slice(part[0], part[1] - part[0])
        self.ids: np.ndarray = table["id"].to_numpy()
        """The example id of each row: its row number in the split as it was read from the source."""
        self.lengths: np.ndarray = table["length"].to_numpy()
        """The number of tokens of each row, int32."""
        lists = {name: table[name] for name in layout.padding}
        # All inputs of a row have the same length, so the offsets of one input are those of all.
        self._starts: np.ndarray = next(iter(lists.values())).offsets.to_numpy()
        self._values: dict[str, np.ndarray] = {name: column.values.to_numpy() for name, column in lists.items()}
        self._gold, self._answers_of_row = _gold_of(table["label"])
        self._places = table["place"].flatten().to_numpy() if "place" in table.schema.names else None
        self._begins = table["begins"].flatten().to_numpy() if "begins" in table.schema.names else None

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels in the order of their numbers; empty for a task without labels."""
        return self._layout.labels

    @property
    def top_k(self) -> int | None:
        """See `Layout`."""
        return self._layout.top_k

    @property
    def max_length(self) -> int:
        """See `Layout`."""
        return self._layout.max_length

    @cached_property
    def gold(self) -> np.ndarray:
        """The right answers, in the order of the answers: class numbers (A, int64; -1: none), numbers (A, float64; nan:
        none), or whether each label holds (A x C, int64; -1: none)."""
        return _widened(self._gold)

    @cached_property
    def token_ids(self) -> np.ndarray | None:
        """The different token ids of all rows and of padding, in order; None: they are not known before a pass."""
        ids = self._values["input_ids"][self._starts[0] : self._starts[-1]]
        is_used = np.zeros(max(int(ids.max(initial=0)), self._layout.padding["input_ids"]) + 1, bool)
        is_used[self._layout.padding["input_ids"]] = True
        for start in range(0, len(ids), TOKENS_AT_ONCE):
            is_used[ids[start : start + TOKENS_AT_ONCE]] = True
        return np.flatnonzero(is_used)

    @property
    def answer_ids(self) -> np.ndarray:
        """The example id of each answer (A)."""
        return np.repeat(self.ids, np.diff(self.answer_starts))

    @cached_property
    def answer_starts(self) -> np.ndarray:
        """The number of the first answer of each row, and at the end the number of all answers (N + 1)."""
        counts = np.ones(len(self), np.int64) if self._answers_of_row is None else self._answers_of_row
        return np.concatenate(([0], np.cumsum(counts)))

    @cached_property
    def example_starts(self) -> np.ndarray:
        """The number of the first answer of each example, and at the end the number of all answers."""
        first_rows = np.flatnonzero(np.diff(self.ids, prepend=self.ids[:1] - 1))
        return np.concatenate((self.answer_starts[first_rows], self.answer_starts[-1:]))

    def answers(self, indices: np.ndarray) -> np.ndarray:
        """The numbers of the answers of these rows, row after row."""
        if self._answers_of_row is None:
            return indices
        counts = self._answers_of_row[indices]
        before = np.cumsum(counts) - counts
        return np.repeat(self.answer_starts[indices] - before, counts) + np.arange(counts.sum())

    def count_answers(self, indices: np.ndarray) -> tuple[int, int]:
        """The number of answers of these rows, and the number of those that have gold."""
        gold = self._gold[self.answers(indices)]
        has_gold = np.isfinite(gold) if gold.dtype.kind == "f" else gold >= 0
        return len(gold), int((has_gold if gold.ndim == 1 else has_gold[:, 0]).sum())

    def with_logits(self, logits: LogitStore) -> Self:
        """The same rows with the teacher's logits."""
        return type(self)(*self._arguments[:2], logits)

    def first(self, count: int) -> Self:
        """The first rows, with their logits."""
        return self if count == len(self) else type(self)(*self._arguments[:3], self._part_of_file(0, count))

    def part(self, start: int, stop: int) -> Self:
        """The rows from `start` to `stop - 1`, without logits."""
        return type(self)(*self._arguments[:2], None, self._part_of_file(start, stop))

    def _part_of_file(self, start: int, stop: int) -> tuple[int, int]:
        """Where these rows stand in the file: these may be a part of it themselves."""
        return self._first_row + start, self._first_row + stop

    def at_pass(self, number: int) -> Self:
        """These rows as they are in the pass with this number through them, from 0: the same in every one."""
        return self

    def teacher_logits(self, answers: np.ndarray | None = None) -> np.ndarray:
        """The teacher's logits of these answers, or of all (A x C, float32). Raises LookupError if there are none."""
        if self._logits is None:
            raise LookupError("these rows have no teacher logits; TransferSet.rows gives them.")
        if answers is None:
            answers = np.arange(self.answer_starts[-1])
        return np.asarray(self._logits[answers], dtype=np.float32)

    def batch(self, indices: np.ndarray, multiple: int = 1) -> Batch:
        """These rows, padded to the longest one and then to a multiple of `multiple`, at most to the maximum length.

        A batch has at least one column: a row without tokens, which a decoder's tokenizer makes of an empty text,
        consists of padding.
        """
        lengths_B = self.lengths[indices]
        longest = max(1, int(lengths_B.max()))
        width = max(longest, min(-(-longest // multiple) * multiple, self._layout.max_length))
        columns_L = np.arange(width)
        is_token_BxL = columns_L < lengths_B[:, None]
        places_BxL = self._starts[indices][:, None] + columns_L
        inputs = {"attention_mask": torch.from_numpy(is_token_BxL.astype(np.int64))}
        for name, values in self._values.items():
            # The places of padding lie in the next row, or beyond the end of the values. "clip" accepts the latter, and
            # np.where replaces whatever was read there.
            tokens_BxL = values.take(places_BxL, mode="clip")
            padded_BxL = np.where(is_token_BxL, tokens_BxL, self._layout.padding[name])
            inputs[name] = torch.from_numpy(padded_BxL.astype(np.int64, copy=False))
        answers = self.answers(indices)
        return Batch(
            inputs=inputs,
            gold=torch.from_numpy(_widened(self._gold[answers])),
            ids=self.ids[indices],
            places_A=self._places_in_batch(indices, answers, width),
            teacher_logits_AxC=None if self._logits is None else torch.from_numpy(self.teacher_logits(answers)),
            top_k=self._layout.top_k,
        )

    def _places_in_batch(self, indices: np.ndarray, answers: np.ndarray, width: int) -> Tensor | None:
        """The place of each of these answers among the tokens of a batch with rows of this width."""
        if self._places is None or self._answers_of_row is None:
            return None
        row_of_answer = np.repeat(np.arange(len(indices)), self._answers_of_row[indices])
        return torch.from_numpy(row_of_answer * width + self._places[answers])


def _gold_of(column: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
    """The gold in the order of the answers, and the number of answers of each row; None: one of each row."""
    if pa.types.is_large_list(column.type):
        return column.flatten().to_numpy(), np.diff(column.offsets.to_numpy())
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy().reshape(len(column), column.type.list_size), None
    return column.to_numpy(), None


def _widened(gold: np.ndarray) -> np.ndarray:
    """A copy with 64 bits for each number; torch warns about read-only arrays, such as those of a memory map."""
    return gold.astype(np.float64 if gold.dtype.kind == "f" else np.int64)


def _map_file(file: Path) -> pa.RecordBatch:
    """The only record batch of the file, memory-mapped; arrays that view it keep the mapping open."""
    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    # Others can write to a shared storage.
    check_schema(reader.schema, str(file))
    return reader.get_batch(0)
