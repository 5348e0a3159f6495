"""Signal: where the states of a teacher come from that inner terms compare with those of a student.

`LiveSignal` runs the teacher in the slot, batch after batch. Another signal is one class with the same methods.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdray.data.rows import Batch
from kdray.evaluation.outputs import kept_outputs
from kdray.losses.states import Needs, States
from kdray.models.pretrained import Pretrained
from kdray.slots.job import Worker
from kdray.students.layers import transformer_layers
from kdray.students.recording import Recorder
from kdray.training.precision import autocast_dtype


class OpenSignal(Protocol):
    """A signal in the process that trains a student."""

    @property
    def widths(self) -> Mapping[int, int]:
        """Number of a layer -> its hidden size, for the layers whose hidden states it has."""
        ...

    def outputs(self, batch: Batch) -> Tensor:
        """The teacher's outputs at the answers of this batch, without gradients: see `kept_outputs`.

        Raises LookupError if the teacher does not run here.
        """
        ...

    def states(self, batch: Batch, rows: np.ndarray) -> States:
        """The teacher's states for this batch, which is on the worker's device, padding included, without gradients.

        `rows` are the numbers of its rows among the texts to train on, as in `TransferSet.all_rows`. Hidden states are
        in bf16.
        """
        ...


class Signal(Protocol):
    """Where the states of a teacher come from: a value that a job carries to its slot."""

    @property
    def layers(self) -> int:
        """The number of layers of the teacher."""
        ...

    def open(self, needs: Needs, worker: Worker) -> AbstractContextManager[OpenSignal]:
        """Open it in this process, for the states of these layers."""
        ...


@dataclass(frozen=True)
class LiveSignal:
    """The fine-tuned teacher itself, in the slot."""

    teacher: Pretrained
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """The precision that its states are computed in, as that of its logits."""

    @property
    def layers(self) -> int:
        """See `Signal`."""
        return self.teacher.layers

    @contextmanager
    def open(self, needs: Needs, worker: Worker) -> Iterator[OpenSignal]:
        """See `Signal`. The model stays in the worker for the next job."""
        model = worker.cached(("model", self.teacher.key), lambda: self.teacher.model().to(worker.device))
        model.eval()
        with Recorder(model, transformer_layers(model), needs) as recorder:
            yield _LiveTeacher(model, recorder, autocast_dtype(self.precision, worker.device, model))


class _LiveTeacher:
    def __init__(self, model: PreTrainedModel, recorder: Recorder, autocast: torch.dtype | None) -> None:
        self._model, self._recorder, self._autocast = model, recorder, autocast
        self._has_read: Batch | None = None
        """The batch whose states are recorded, and not taken yet."""

    @property
    def widths(self) -> Mapping[int, int]:
        return hidden_widths(self._model, self._recorder)

    def outputs(self, batch: Batch) -> Tensor:
        with self._reading(batch):
            outputs = kept_outputs(self._model, batch)
        self._has_read = batch
        return outputs

    def states(self, batch: Batch, rows: np.ndarray) -> States:
        if self._has_read is not batch:
            with self._reading(batch):
                self._model(**batch.inputs)
        self._has_read = None
        states = self._recorder.take()
        # As they are stored, so that a stored signal and a live one give the same losses.
        return replace(states, hidden={layer: value.bfloat16() for layer, value in states.hidden.items()})

    @contextmanager
    def _reading(self, batch: Batch) -> Iterator[None]:
        device = batch.gold.device
        # Not inference_mode: its tensors cannot be part of a loss with gradients.
        with torch.no_grad(), torch.autocast(device.type, dtype=self._autocast, enabled=self._autocast is not None):
            yield


def hidden_widths(model: nn.Module, recorder: Recorder) -> dict[int, int]:
    """Number of a layer -> its hidden size, for the layers that are recorded. It runs the model on two tokens."""
    was_training = model.training
    model.eval()  # a model in training would draw dropout
    tokens = torch.ones((1, 2), dtype=torch.int64, device=next(model.parameters()).device)
    with torch.no_grad():
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    model.train(was_training)
    return {layer: states.shape[-1] for layer, states in recorder.take().hidden.items()}
