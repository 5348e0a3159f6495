"""CompactTable: the token embeddings of a model in training, without the rows of tokens that no training row has.

A row of the table that is never looked up has no gradient. AdamW changes it by weight decay alone, yet it takes part in
each step: its gradient is filled with zeros, measured and scaled, and its moments are read and written. In a training
the model therefore has a table of the other rows alone, and each token id is replaced by the number of its row. The
rows that were left out get what AdamW gives them, the product of 1 - learning rate * weight decay over the steps, when
the whole table is put together: for each evaluation, for each checkpoint, and at the end. A checkpoint so has the same
form with a compact table and without one.

The numbers of a training are the same with it and without it, except for rounding: the norm of the gradient is a sum in
another order, and the rows that were left out are rounded once instead of at each step.

Letters: V rows of the whole table, R rows of the compact one, E numbers of a row, B x L token ids.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdray.errors import JobError

MAX_SHARE = 0.9
"""The largest share of the rows that a compact table has. At MiniLM's size each hundredth of the rows that is left out
saves about 0.5 ms of a step; putting the table together takes about as long as half a step, at each evaluation."""


class CompactTable:
    """Trains these rows of an embedding table in place of the whole table."""

    def __init__(self, embedding: nn.Embedding, ids_R: Tensor, weight_decay: float) -> None:
        """`ids_R`: the ids of all tokens that the training looks up, each once, on the device of the table."""
        self._embedding, self._ids_R, self._weight_decay = embedding, ids_R, weight_decay
        self._table, self._padding_id = embedding.weight, embedding.padding_idx
        self._rows = nn.Parameter(self._table.detach()[ids_R])
        # A token without a row has the number R, which no look-up accepts: it can never read another token's row.
        self._row_of_id_V = torch.full((len(self._table),), len(ids_R), device=ids_R.device)
        self._row_of_id_V[ids_R] = torch.arange(len(ids_R), device=ids_R.device)
        self._whole: nn.Parameter | None = None
        self._kept = 1.0
        self._hook: Any = None
        self._use_rows()

    def decay(self, learning_rate: float) -> None:
        """Note that AdamW has made a step with this learning rate."""
        self._kept *= 1 - learning_rate * self._weight_decay

    @contextmanager
    def whole(self, optimizer: torch.optim.Optimizer | None = None) -> Iterator[None]:
        """A block in which the model has the whole table, and `optimizer` its moments, to read them.

        With an optimizer the block may also load a checkpoint: what it loads into the rows that are trained, and into
        their moments, is theirs after it. What it loads into other rows has no effect: they follow from the model
        before the training and from the learning rates, so a continued training gives the same numbers.
        """
        if self._whole is None:
            # Kept for the next evaluation: most of the time would go into new pages of memory.
            self._whole = nn.Parameter(torch.empty_like(self._table))
        whole = self._whole
        self._put_together(whole.detach())
        self._use_table(whole)
        if optimizer is not None:
            _replace(optimizer, self._rows, whole, self._expanded)
        try:
            yield
        finally:
            if optimizer is not None:
                self._rows.data.copy_(whole.detach()[self._ids_R])
                _replace(optimizer, whole, self._rows, lambda moments_VxE: moments_VxE[self._ids_R])
            self._use_rows()

    def restore(self) -> None:
        """Give the model its own table again, with everything that it has learnt."""
        self._put_together(self._table.detach())
        self._use_table(self._table)

    @torch.no_grad()
    def _put_together(self, into_VxE: Tensor) -> None:
        torch.mul(self._table, self._kept, out=into_VxE)
        into_VxE[self._ids_R] = self._rows

    def _expanded(self, moments_RxE: Tensor) -> Tensor:
        """The moments of the whole table: a row that never had a gradient has the moments 0."""
        moments_VxE = torch.zeros_like(self._table)
        moments_VxE[self._ids_R] = moments_RxE
        return moments_VxE

    def _use_rows(self) -> None:
        self._embedding.weight = self._rows
        if self._padding_id is not None:
            self._embedding.padding_idx = int(self._row_of_id_V[self._padding_id])
        self._hook = self._embedding.register_forward_pre_hook(self._find_rows, with_kwargs=True)

    def _use_table(self, table: Tensor) -> None:
        self._hook.remove()
        self._embedding.weight, self._embedding.padding_idx = table, self._padding_id

    def _find_rows(
        self, _embedding: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        ids_BxL = inputs[0] if inputs else named["input"]
        rows_BxL = self._row_of_id_V[ids_BxL]
        # On a GPU the look-up itself stops the process. A check here would wait for the device in each step.
        if rows_BxL.device.type == "cpu" and rows_BxL.numel() and int(rows_BxL.max()) >= len(self._ids_R):
            unknown = int(ids_BxL[rows_BxL >= len(self._ids_R)][0])
            raise JobError(
                f"the model looked up the token {unknown} in its training, but no training row has it; please report "
                "this as a bug of kdray."
            )
        return (rows_BxL,), {}


@contextmanager
def compact_table(model: nn.Module, ids: np.ndarray | None, weight_decay: float) -> Iterator[CompactTable | None]:
    """A block in which the model is trained with a compact table of the rows of these tokens, on its device.

    `ids`: the different tokens of all training rows and of padding; None: they are not known. The block has None, and
    the model is left as it is, where that is so, where nearly all rows are looked up (`MAX_SHARE`), and where the table
    is used in another way too, such as by the last layer of a language model.
    """
    embedding = None if ids is None else _only_used_for_tokens(model)
    if embedding is None or ids is None or not 0 < len(ids) <= MAX_SHARE * len(embedding.weight):
        yield None
        return
    own = [embedding.padding_idx, *_special_tokens(model)]
    ids_R = np.union1d(ids, [number for number in own if number is not None and 0 <= number < len(embedding.weight)])
    if ids_R[-1] >= len(embedding.weight):  # the look-up of the whole table says which token it does not have
        yield None
        return
    table = CompactTable(embedding, torch.from_numpy(ids_R.astype(np.int64)).to(embedding.weight.device), weight_decay)
    try:
        yield table
    finally:
        table.restore()


def whole_table(
    table: CompactTable | None, optimizer: torch.optim.Optimizer | None = None
) -> AbstractContextManager[None]:
    """A block in which the model has its whole table, and `optimizer` the moments of it; see `CompactTable.whole`."""
    return nullcontext() if table is None else table.whole(optimizer)


def _only_used_for_tokens(model: nn.Module) -> nn.Embedding | None:
    """The token embedding of a model in which nothing else uses its table; None: there is none."""
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        has_vocabulary = model.get_output_embeddings() is not None  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    # A subclass may do more with ids than to look up rows. Sparse and renormalised tables have gradients of their own.
    if type(embedding) is not nn.Embedding or embedding.sparse or embedding.max_norm or embedding.scale_grad_by_freq:
        return None
    users = sum(parameter is embedding.weight for _, parameter in model.named_parameters(remove_duplicate=False))
    return embedding if users == 1 and embedding.weight.requires_grad and not has_vocabulary else None


def _special_tokens(model: nn.Module) -> list[int]:
    """The tokens that a model may add to a text itself, such as the padding of BigBird and Longformer."""
    config = getattr(model, "config", None)
    values = [] if config is None else [value for name, value in vars(config).items() if name.endswith("_token_id")]
    return [value for value in values if isinstance(value, int)]


def _replace(optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter, change: Any) -> None:
    """Let the optimizer have `new` in the place of `old`, with the moments that `change` makes of those of `old`."""
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    if old in optimizer.state:
        state = optimizer.state.pop(old)
        optimizer.state[new] = {
            name: change(value) if value.shape == old.shape else value for name, value in state.items()
        }
