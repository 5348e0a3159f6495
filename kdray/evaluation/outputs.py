"""The outputs of a model on given rows.

Letters: N rows, A answers, C outputs. The quality metrics are part of the task, costs are measured in `measuring`, and
`training` decides when a model is evaluated.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from kdray.data.batches import batches_of_equal_length, ordered_batches
from kdray.data.rows import Batch, Rows
from kdray.losses.top_k import TopK
from kdray.models.vocabulary_head import answer
from kdray.slots.job import Worker

TOKENS_ON_CPU = 2048
"""The most tokens of a batch on a CPU, padding included. Of more tokens, each takes longer: they need more memory than
the caches have. A model of MiniLM's size reads rows of 25 tokens 1.3 times, and rows of 64 to 256 tokens 2.1 times as
fast as in batches of 128 rows (bench/evaluation_batches.py)."""

TOKENS_OF_VOCABULARY = 4096
"""The most tokens of a batch on another device, of a model that gives logits over a vocabulary for each of them."""


def compute_logits(
    model: nn.Module,
    rows: Rows,
    batch_size: int,
    worker: Worker,
    autocast: torch.dtype | None,
    padding: bool = True,
) -> np.ndarray:
    """Compute the logits of all answers (A x C, float32, in the order of the answers) and give them to every rank.

    A collective call: every rank must make it. Each rank computes its share of the same batches, so the numbers do not
    depend on the number of ranks. `autocast`: the type that autocast computes in; None for float32. Without `padding`
    the rows of a batch have the same length. Of outputs over a vocabulary the rows of `TopK` are kept (A x D).
    """
    share = evaluation_batches(rows, batch_size, worker, padding)[worker.rank :: worker.world]
    outputs: list[Tensor] = []
    with evaluation_mode(model), torch.autocast(worker.device.type, dtype=autocast, enabled=autocast is not None):
        for indices in share:
            batch = rows.batch(indices, worker.pad_multiple if padding else 1).to(worker.device)
            outputs.append(kept_outputs(model, batch))
            worker.progress += 1  # a worker whose count does not grow is taken for hung
    # One copy from the device at the end: each copy waits until the device has computed its batch.
    logits = torch.cat(outputs).float().cpu().numpy() if outputs else None
    return _merge_in_order(rows, worker.all_gather((share, logits)))


def evaluation_batches(rows: Rows, batch_size: int, worker: Worker, padding: bool = True) -> list[np.ndarray]:
    """The numbers of the rows of each batch, at most `batch_size`, and fewer of long rows; see `compute_logits`."""
    most_tokens = None
    if worker.device.type == "cpu":
        most_tokens = TOKENS_ON_CPU
    elif rows.top_k is not None:
        # Some models give the logits of every token, of which few fit into memory.
        most_tokens = TOKENS_OF_VOCABULARY
    batches = ordered_batches if padding else batches_of_equal_length
    return batches(rows.lengths, batch_size, most_tokens)


def kept_outputs(model: nn.Module, batch: Batch) -> Tensor:
    """The outputs of the model at the answers of a batch, A x C; of a vocabulary the rows of `TopK`, A x D."""
    answers = answer(model, batch)
    if batch.top_k is None:
        return answers.outputs()
    # A batch without answers has one part, which is empty.
    parts = list(answers.parts()) or [slice(0)]
    return torch.cat([TopK.of_logits(answers.outputs(part), batch.gold[part], batch.top_k).rows() for part in parts])


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode without gradients, and restore its mode at the end of the block."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _merge_in_order(rows: Rows, shares: list[tuple[list[np.ndarray], np.ndarray | None]]) -> np.ndarray:
    """The logits of all ranks in the order of the answers. A rank without batches has None for its logits."""
    computed = [(rows.answers(np.concatenate(batches)), logits) for batches, logits in shares if logits is not None]
    answers = sum(len(numbers) for numbers, _ in computed)
    logits_AxC = np.empty((answers, computed[0][1].shape[1]), dtype=np.float32)
    for numbers, logits in computed:
        logits_AxC[numbers] = logits
    return logits_AxC
