"""StoredSignal: the signal that reads the hidden states of a teacher from files, which were written once.

`StoredOrLiveSignal` reads them for trainings that compare no attention, and runs the teacher for the others.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from kdray.data.rows import Batch
from kdray.data.state_store import StateSet, StoredStates
from kdray.errors import StorageError
from kdray.losses.states import Needs, States
from kdray.slots.job import Worker
from kdray.training.signal import LiveSignal, OpenSignal


@dataclass(frozen=True)
class StoredSignal:
    """Hidden states from files. Attention is not stored: it grows with the square of the length of a text."""

    stored: StateSet
    layers: int
    """See `Signal`."""

    @contextmanager
    def open(self, needs: Needs, worker: Worker) -> Iterator[OpenSignal]:
        """See `Signal`. The files stay open in the worker for the next job.

        Raises StorageError for states that are not stored, and for files that cannot be used.
        """
        missing = sorted(needs.attention | (needs.hidden - self.stored.folders.keys()))
        if missing:
            raise StorageError(
                f"the stored states of the teacher have {_list(self.stored.folders)}, and this training needs "
                f"{_list(missing)}{', with their attention' if needs.attention else ''}. Set transfer.signal=live."
            )
        yield _OpenFiles({layer: self._open_layer(layer, worker) for layer in sorted(needs.hidden)})

    def _open_layer(self, layer: int, worker: Worker) -> StoredStates:
        return worker.cached(("states", self.stored.folders[layer]), lambda: self.stored.layer(layer))


@dataclass(frozen=True)
class StoredOrLiveSignal:
    """Hidden states from files, and the teacher itself for a training that needs attention."""

    stored: StoredSignal
    live: LiveSignal

    @property
    def layers(self) -> int:
        """See `Signal`."""
        return self.stored.layers

    def open(self, needs: Needs, worker: Worker) -> AbstractContextManager[OpenSignal]:
        """See `Signal`. Raises StorageError as `StoredSignal.open` does."""
        return (self.live if needs.attention else self.stored).open(needs, worker)


@dataclass(frozen=True)
class _OpenFiles:
    layers: Mapping[int, StoredStates]

    @property
    def widths(self) -> Mapping[int, int]:
        return {layer: states.width for layer, states in self.layers.items()}

    def outputs(self, batch: Batch) -> Tensor:
        raise LookupError("the files have the states of the teacher; its outputs are in the transfer set")

    def states(self, batch: Batch, rows: np.ndarray) -> States:
        width, device = batch.inputs["attention_mask"].shape[1], batch.gold.device
        hidden = {
            layer: states.padded(rows, width).to(device, non_blocking=True) for layer, states in self.layers.items()
        }
        return States(hidden=hidden)


def _list(layers: Iterable[int]) -> str:
    return f"layers {', '.join(map(str, sorted(layers)))}"
