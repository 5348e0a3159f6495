"""The outputs of a model at the answers of a batch; for a language model without an array of all tokens by vocabulary.

The last layer of a language model gives 30,000 to 250,000 logits for each token of a batch. Only those at the answers
are needed, and never all at the same time: the last layer is taken out of the forward pass, and computed later for some
answers at a time. Models that compute more behind their last layer, or do not call it, keep their forward pass.

Shapes: A answers, C outputs, H numbers that the last layer reads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kdray.data.rows import Batch

LOGITS_AT_ONCE = 2**23
"""The most logits of a vocabulary that exist at the same time: 32 MiB in float32."""


@dataclass(frozen=True)
class Answers:
    """The outputs of a model at the answers of a batch, or what its last layer computes them from."""

    states_AxH: Tensor
    """The outputs themselves (A x C), if there is no `head`."""
    head: nn.Module | None = None
    """The last layer, which gives the outputs of these states."""

    def __len__(self) -> int:
        return len(self.states_AxH)

    def parts(self) -> Iterator[slice]:
        """The answers, so many at a time that their outputs are few enough."""
        outputs = 0 if self.head is None else _outputs_of(self.head)
        size = max(1, LOGITS_AT_ONCE // outputs) if outputs else max(1, len(self))
        return (slice(start, min(start + size, len(self))) for start in range(0, len(self), size))

    def outputs(self, part: slice = slice(None)) -> Tensor:
        """The outputs of these answers (part x C)."""
        states = self.states_AxH[part]
        outputs: Tensor = states if self.head is None else self.head(states)
        return outputs


def answer(model: nn.Module, batch: Batch) -> Answers:
    """Run the model on a batch, and give its outputs at the answers; those over a vocabulary are not computed yet."""
    head = late_head(model) if batch.top_k is not None else None
    if head is None:
        return Answers(batch.answers(model(**batch.inputs).logits))
    with _without(head):
        states_BxLxH = model(**batch.inputs).logits
    return Answers(batch.answers(states_BxLxH), head)


def late_head(model: nn.Module) -> nn.Module | None:
    """The last layer of a model, if its outputs can be computed behind the forward pass; None if they cannot."""
    if model not in _HEADS:
        _HEADS[model] = _find_late_head(model)
    name = _HEADS[model]
    return None if name is None else model.get_submodule(name)


_HEADS: "WeakKeyDictionary[nn.Module, str | None]" = WeakKeyDictionary()
"""Model -> the name of its late head; a comparison of both ways has shown it."""


def _find_late_head(model: nn.Module) -> str | None:
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    if not isinstance(head, nn.Linear):
        return None
    was_training = model.training
    model.eval()  # a model in training would draw dropout
    tokens = torch.ones((1, 2), dtype=torch.int64, device=head.weight.device)
    inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    with torch.no_grad():
        expected = model(**inputs).logits
        with _without(head):
            states = model(**inputs).logits
        is_late = states.shape[-1] == head.in_features and torch.equal(head(states), expected)
    model.train(was_training)
    return next(name for name, module in model.named_modules() if module is head) if is_late else None


@contextmanager
def _without(head: nn.Module) -> Iterator[None]:
    """A block in which this layer gives what it gets."""
    head.forward = _same
    try:
        yield
    finally:
        del head.forward


def _same(states: Tensor) -> Tensor:
    return states


def _outputs_of(head: nn.Module) -> int:
    return int(getattr(head, "out_features", 0))
