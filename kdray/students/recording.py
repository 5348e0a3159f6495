"""Recorder: the states of a model's layers in its last forward pass, for losses that compare layers.

Hidden states are the outputs of the layers' modules; a norm behind the last layer is no part of it. Attention is
recorded by a function of transformers' `AttentionInterface`, which calls the function that the model used before with
the same arguments, so a recorded model computes what it computed before. Shapes: see `kdray.losses.states`.
"""

import sys
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kdray.losses.states import Attention, Needs, States

RECORDED = "kdray_recorded_"
"""How the names of the attention functions begin that record; the name of the function that they call follows."""
UNRECORDABLE = ("position_bias", "softcap", "s_aux")
"""Arguments of an attention function that change the scores of queries and keys. T5 adds a bias by position, Gemma 2
caps the scores, GPT-OSS adds a place that takes attention away. Queries and keys alone do not give the attention of
such a layer, so it is not recorded."""


class Recorder:
    """Records the states of some layers, as long as its context is open: `with Recorder(...) as recorder`.

    Layers are counted from 1 in the order in which they are called, so a module that is called several times (ALBERT)
    is several layers. Number 0 stands for the input of layer 1; in a model without layers, for its token embeddings.
    Recorded tensors have gradients. Queries, keys and values come before dropout, which acts on attention itself.
    Several models may be recorded at once, and each model by several recorders.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[nn.Module], needs: Needs) -> None:
        """`layers` are the modules of the layers in order, see `Student.inner_layers`; one may stand there twice."""
        self._model, self._layers, self._needs = model, tuple(dict.fromkeys(layers)), needs
        self._hooks: list[Any] = []
        self._replaced: list[tuple[PreTrainedConfig, str]] = []
        self._running = 0  # the number of the layer that runs, or ran last
        self._tokens: int | None = None
        self._hidden: dict[int, Tensor] = {}
        self._attention: dict[int, Attention] = {}

    def __enter__(self) -> Self:
        self._hooks.append(self._model.register_forward_pre_hook(self._begin_pass, with_kwargs=True))
        for layer in self._layers:
            self._hooks.append(layer.register_forward_pre_hook(self._begin_layer, with_kwargs=True))
            self._hooks.append(layer.register_forward_hook(lambda _layer, _inputs, output: self._end_layer(output)))
        if not self._layers:
            embeddings = self._model.get_input_embeddings()
            self._hooks.append(embeddings.register_forward_hook(lambda _module, _ids, output: self._keep(0, output)))
        if self._needs.attention:
            self._watch_attention()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        for config, before in self._replaced:
            config._attn_implementation = before
        for module in self._attending():
            if self in (recorders := _RECORDERS.get(module, [])):
                recorders.remove(self)
        self._hooks, self._replaced = [], []
        self._forget()

    def take(self) -> States:
        """The states that the last forward pass had, which the recorder then forgets.

        A layer is missing whose attention cannot be recorded, see `recordable`.
        """
        states = States(self._hidden, self._attention)
        self._forget()
        return states

    def keep_attention(self, attention: Attention) -> None:
        """Keep what the attention of the running layer compares, if it is needed."""
        if self._running in self._needs.attention:
            self._attention[self._running] = attention

    @property
    def needs_attention(self) -> bool:
        """Whether the attention of the running layer is needed."""
        return self._running in self._needs.attention

    def _watch_attention(self) -> None:
        for module in self._attending():
            _RECORDERS.setdefault(module, []).append(self)
        for config in _configs(self._model):
            before = config._attn_implementation
            # A configuration that two models share is put back by the recorder that changed it.
            if before is not None and not before.startswith(RECORDED):
                self._replaced.append((config, before))
                config._attn_implementation = _registered(before)

    def _attending(self) -> Iterator[nn.Module]:
        for layer in self._layers:
            yield from layer.modules()

    def _begin_pass(self, _model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._forget()
        ids_BxL = named.get("input_ids", inputs[0] if inputs else None)
        self._tokens = None if ids_BxL is None else ids_BxL.shape[1]

    def _begin_layer(self, _layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self._running == 0:
            self._keep(0, inputs[0] if inputs else named["hidden_states"])
        self._running += 1

    def _end_layer(self, output: Any) -> None:
        # Many layers return several values: the others are attention maps or caches.
        state = output[0] if isinstance(output, tuple | list) else output
        if isinstance(state, Tensor):  # SqueezeBERT returns a dict, of states in another layout
            self._keep(self._running, state)

    def _keep(self, layer: int, hidden_BxLxH: Tensor) -> None:
        if layer in self._needs.hidden:
            # Longformer and BigBird compute with more padding than they were given.
            self._hidden[layer] = hidden_BxLxH[:, : self._tokens]

    def _forget(self) -> None:
        self._running, self._hidden, self._attention = 0, {}, {}


_RECORDERS: WeakKeyDictionary[nn.Module, list[Recorder]] = WeakKeyDictionary()
"""The recorders of the modules of recorded layers: the registered functions are shared by all models of a process."""


def _configs(model: PreTrainedModel) -> Iterator[PreTrainedConfig]:
    """The configurations that the modules of the model read, each once; that of the model comes first."""
    configs = (getattr(module, "config", None) for module in model.modules())
    yield from {id(config): config for config in configs if isinstance(config, PreTrainedConfig)}.values()


def _registered(implementation: str) -> str:
    """The name of the attention function that records, and then calls the one of this name; it is registered."""
    name = f"{RECORDED}{implementation}"

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
    ) -> Any:
        recorders = [recorder for recorder in _RECORDERS.get(module, ()) if recorder.needs_attention]
        if recorders and _is_complete(implementation, attention_mask, settings):
            attention = _attention(module, (query, key, value), attention_mask, settings)
            for recorder in recorders:
                recorder.keep_attention(attention)
        return _before(module, implementation)(module, query, key, value, attention_mask, **settings)

    AttentionInterface.register(name, attend)
    # Without a function for masks of the same name, transformers would make none.
    if implementation in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
    return name


def _is_complete(implementation: str, mask: Tensor | None, settings: dict[str, Any]) -> bool:
    """Whether queries, keys and what is allowed give the attention of a layer."""
    # transformers makes masks of numbers for its eager functions alone; Doge adds biases that it learns in them.
    adds_biases = mask is not None and mask.is_floating_point() and implementation != "eager"
    return not adds_biases and all(settings.get(each) is None for each in UNRECORDABLE)


def _before(module: nn.Module, implementation: str) -> Any:
    """The attention function of this name for this module; each family has an `eager` one in the file of its model."""
    file = sys.modules[type(module).__module__]
    functions = getattr(file, "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
    return functions.get_interface(implementation, getattr(file, "eager_attention_forward", None))


def _attention(
    module: nn.Module, compared: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, settings: dict[str, Any]
) -> Attention:
    queries, keys, values = compared
    is_causal = settings.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scaling = settings.get("scaling")
    return Attention(
        queries_BxAxLxD=queries,
        keys_BxAxLxD=_for_each_head(keys, queries.shape[1]),
        values_BxAxLxD=_for_each_head(values, queries.shape[1]),
        scaling=queries.shape[-1] ** -0.5 if scaling is None else scaling,
        allowed=_allowed(mask, queries.shape[2], is_causal, queries.device),
    )


def _for_each_head(shared_BxGxLxD: Tensor, heads: int) -> Tensor:
    groups = shared_BxGxLxD.shape[1]
    return shared_BxGxLxD if groups == heads else shared_BxGxLxD.repeat_interleave(heads // groups, dim=1)


def _allowed(mask: Tensor | None, tokens: int, is_causal: bool, device: torch.device) -> Tensor | None:
    """See `Attention.allowed`. As in transformers, a layer is causal by itself only where no mask came."""
    if mask is None:
        return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril() if is_causal else None
    if mask.dtype == torch.bool:
        return mask
    # A mask that is added has 0 for the tokens that are looked at, and the lowest number or -inf for the others.
    return mask > torch.finfo(mask.dtype).min / 2
