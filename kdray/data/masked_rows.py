"""MaskedRows: the rows of a masked language model that are masked when they are read, in each pass through them anew.

The file has the whole texts: its answers are all places that may be masked, and their gold is the token there. Shapes:
B rows of a batch, P places of these rows that may be masked, M masked ones.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from kdray.data.masking import Masking, row_keys
from kdray.data.rows import Batch, Layout, LogitStore, Rows

SEED = 17
"""The first number of every seed, so that masks are not drawn with the numbers of other draws."""


class MaskedRows(Rows):
    """Rows with other masks in each pass. The masks of a row depend on its number in the file and on the pass alone."""

    def __init__(
        self,
        file: Path,
        layout: Layout,
        logits: LogitStore | None = None,
        part: tuple[int, int] | None = None,
        number: int = 0,
    ) -> None:
        super().__init__(file, layout, logits, part)
        self._arguments: tuple[Any, ...] = (file, layout, logits, part, number)
        self._number = number

    def at_pass(self, number: int) -> Self:
        """See `Rows`."""
        return self if number == self._number else type(self)(*(*self._arguments[:4], number))

    def first(self, count: int) -> Self:
        """See `Rows`. No answers of a teacher are stored for these rows."""
        return self.part(0, count)

    def part(self, start: int, stop: int) -> Self:
        """See `Rows`. The rows keep their numbers in the file, and so their masks."""
        return type(self)(*(*self._arguments[:2], None, self._part_of_file(start, stop), self._number))

    @property
    def token_ids(self) -> None:
        """See `Rows`. Masking puts drawn tokens into the texts."""
        return None

    def count_answers(self, indices: np.ndarray) -> tuple[int, int]:
        """See `Rows`: the number of tokens that are masked in this pass."""
        counts_B = self._places_of(indices)
        if self._begins is None:
            count = int(self._masking.wanted(counts_B).sum())
        else:
            begins_P = self._begins[self.answers(indices)]
            count = len(self._masking.choose(self._keys(indices), counts_B, begins_P))
        return count, count

    def batch(self, indices: np.ndarray, multiple: int = 1) -> Batch:
        """See `Rows`. The batch has the masked tokens of this pass."""
        whole = super().batch(indices, multiple)
        assert whole.places_A is not None
        begins_P = None if self._begins is None else self._begins[self.answers(indices)]
        chosen_M, masked_M = self._masking.mask(
            self._keys(indices), self._places_of(indices), whole.gold.numpy(), begins_P
        )
        answers = torch.from_numpy(chosen_M)
        # `batch` has made these tensors for this call: nobody else reads them.
        whole.inputs["input_ids"].view(-1)[whole.places_A[answers]] = torch.from_numpy(masked_M)
        return replace(whole, gold=whole.gold[answers], places_A=whole.places_A[answers])

    @property
    def _masking(self) -> Masking:
        assert self._layout.masking is not None
        return self._layout.masking

    def _keys(self, indices: np.ndarray) -> np.ndarray:
        return row_keys(SEED, self._number, self._first_row + indices)

    def _places_of(self, indices: np.ndarray) -> np.ndarray:
        """The number of places of each row that may be masked (B)."""
        return np.asarray(self.answer_starts[indices + 1] - self.answer_starts[indices])
