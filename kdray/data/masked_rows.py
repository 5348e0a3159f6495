"""MaskedRows: the rows of a masked language model that are masked when they are read, in each pass through them anew.

The file has the whole texts: its answers are all places that may be masked, and their gold is the token there.
"""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from kdray.data.masking import Masking
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
        self._first_row = 0 if part is None else part[0]

    def at_pass(self, number: int) -> Self:
        """See `Rows`."""
        return self if number == self._number else type(self)(*(*self._arguments[:4], number))

    def count_answers(self, indices: np.ndarray) -> tuple[int, int]:
        """See `Rows`: the number of tokens that are masked in this pass."""
        count = sum(len(self._chosen(row)) for row in indices)
        return count, count

    def batch(self, indices: np.ndarray, multiple: int = 1) -> Batch:
        """See `Rows`. The batch has the masked tokens of this pass."""
        whole = super().batch(indices, multiple)
        assert whole.places_A is not None
        masking, starts = self._masking, np.concatenate(([0], np.cumsum(np.diff(self.answer_starts)[indices])))
        flat = whole.inputs["input_ids"].flatten()
        chosen: list[np.ndarray] = []
        for row, start in zip(indices, starts[:-1], strict=True):
            random = self._random(row)
            mine = start + masking.choose(random, *self._candidates(row))
            tokens = whole.gold[torch.from_numpy(mine)].numpy()
            flat[whole.places_A[torch.from_numpy(mine)]] = torch.from_numpy(masking.replace(random, tokens))
            chosen.append(mine)
        answers = torch.from_numpy(np.concatenate(chosen))
        inputs = {**whole.inputs, "input_ids": flat.view_as(whole.inputs["input_ids"])}
        return Batch(inputs, whole.gold[answers], whole.ids, whole.places_A[answers], top_k=whole.top_k)

    @property
    def _masking(self) -> Masking:
        assert self._layout.masking is not None
        return self._layout.masking

    def _random(self, row: int) -> np.random.Generator:
        return np.random.default_rng([SEED, self._first_row + int(row), self._number])

    def _candidates(self, row: int) -> tuple[int, np.ndarray | None]:
        """The number of places of a row that may be masked, and where among them words begin."""
        start, stop = self.answer_starts[row : row + 2]
        return int(stop - start), None if self._begins is None else self._begins[start:stop]

    def _chosen(self, row: int) -> np.ndarray:
        return self._masking.choose(self._random(row), *self._candidates(row))
