"""The outputs of a model at the answers of a batch; for a language model without an array of all tokens by vocabulary.

The last layer of a language model gives 30,000 to 250,000 logits for each token of a batch. Only those at the answers
are needed, and never all at the same time: the last layer is taken out of the forward pass, and computed later for some
answers at a time. Models that compute more behind their last layer (Gemma 2), or do not call it
(MobileBERT), keep their forward pass, and have the logits of all tokens of a batch.

Shapes: A answers, C outputs, H numbers that the last layer reads.
"""

from collections.abc import Callable, Iterator
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
    """The last layer, which gives the outputs over a vocabulary of these states; None for outputs of other kinds, which
    are few."""

    def __len__(self) -> int:
        return len(self.states_AxH)

    def parts(self) -> Iterator[slice]:
        """The answers, so many at a time that their outputs are few enough; all others at once."""
        outputs = int(getattr(self.head, "out_features", self.states_AxH.shape[-1]))
        size = max(1, len(self) if self.head is None else LOGITS_AT_ONCE // outputs)
        return (slice(start, min(start + size, len(self))) for start in range(0, len(self), size))

    def outputs(self, part: slice = slice(None)) -> Tensor:
        """The outputs of these answers (part x C)."""
        states = self.states_AxH[part]
        outputs: Tensor = states if self.head is None else self.head(states)
        return outputs


def answer(model: nn.Module, batch: Batch) -> Answers:
    """Run the model on a batch, and give its outputs at the answers; those over a vocabulary are not computed yet."""
    if batch.top_k is None:
        return Answers(batch.answers(model(**batch.inputs).logits))
    head = late_head(model)
    if head is None:
        return Answers(batch.answers(model(**batch.inputs).logits), nn.Identity())
    with _replaced(head, _same):
        states_BxLxH = model(**batch.inputs).logits
    return Answers(batch.answers(states_BxLxH), head)


def late_head(model: nn.Module) -> nn.Module | None:
    """The last layer of a model, if its outputs can be computed behind the forward pass; None if they cannot.

    The first call for a model runs it three times on two tokens. Its mode, and torch's random state, stay as they are.
    """
    if model not in _HEADS:
        _HEADS[model] = _find_late_head(model)
    name = _HEADS[model]
    return None if name is None else model.get_submodule(name)


_HEADS: "WeakKeyDictionary[nn.Module, str | None]" = WeakKeyDictionary()
"""Model -> the name of its late head; a comparison of both ways has shown it."""

FACTOR = 64.0
"""Makes states so large that a function behind the last layer, such as a limit of the logits, changes them."""


def _find_late_head(model: nn.Module) -> str | None:
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    if not isinstance(head, nn.Linear):
        return None
    # Without autocast: it would keep the rounded weights of this pass, which has no gradients, for the passes behind.
    device = head.weight.device
    with _quiet(model), torch.no_grad(), torch.autocast(device.type, enabled=False):
        is_late = _is_late(model, head)
    return next(name for name, module in model.named_modules() if module is head) if is_late else None


def _is_late(model: nn.Module, head: nn.Linear) -> bool:
    """Whether the model gives what its last layer gives, or that times a fixed factor (Cohere, Granite)."""
    tokens = torch.ones((1, 2), dtype=torch.int64, device=head.weight.device)
    inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    expected, read = model(**inputs).logits, _Reading()
    try:
        with _replaced(head, read):
            states = model(**inputs).logits
        with _replaced(head, _enlarged):
            large = model(**inputs).logits
    except (RuntimeError, ValueError, IndexError):
        return False  # the model computes with the logits, and expects a vocabulary of them
    if states.shape[-1] != head.in_features or not torch.equal(large, FACTOR * states):
        return False
    # A factor behind the last layer is one in front of it, but not for its bias.
    has_factor = not torch.equal(states, read.states)
    if has_factor and head.bias is not None:
        return False
    return torch.allclose(head(states), expected, rtol=1e-4 if has_factor else 0.0, atol=0.0)


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """A block in which the model draws no dropout; its mode and torch's random state are those of before at the end."""
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


@contextmanager
def _replaced(head: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A block in which this layer gives what this function gives of its input."""
    head.forward = forward
    try:
        yield
    finally:
        del head.forward


def _same(states: Tensor) -> Tensor:
    return states


class _Reading:
    """Gives the states that it gets, and remembers them."""

    def __call__(self, states: Tensor) -> Tensor:
        self.states = states
        return states


def _enlarged(states: Tensor) -> Tensor:
    return FACTOR * states
