"""Signal: where the states of a teacher come from that inner terms compare with those of a student.

`LiveSignal` runs the teacher in the slot, batch after batch. Another signal is one class with the same methods.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from kdray.data.rows import Batch
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


@dataclass(frozen=True)
class _LiveTeacher:
    model: PreTrainedModel
    recorder: Recorder
    autocast: torch.dtype | None

    @property
    def widths(self) -> Mapping[int, int]:
        return hidden_widths(self.model, self.recorder)

    def states(self, batch: Batch, rows: np.ndarray) -> States:
        device = batch.gold.device
        # Not inference_mode: its tensors cannot be part of a loss with gradients.
        with torch.no_grad(), torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None):
            self.model(**batch.inputs)
        states = self.recorder.take()
        # As they are stored, so that a stored signal and a live one give the same losses.
        return replace(states, hidden={layer: value.bfloat16() for layer, value in states.hidden.items()})


def hidden_widths(model: nn.Module, recorder: Recorder) -> dict[int, int]:
    """Number of a layer -> its hidden size, for the layers that are recorded. It runs the model on two tokens."""
    was_training = model.training
    model.eval()  # a model in training would draw dropout
    tokens = torch.ones((1, 2), dtype=torch.int64, device=next(model.parameters()).device)
    with torch.no_grad():
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    model.train(was_training)
    return {layer: states.shape[-1] for layer, states in recorder.take().hidden.items()}
