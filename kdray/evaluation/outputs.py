"""What a model says: its logits on given rows, and how often it agrees with the teacher.

Quality metrics are the task's; what a model costs is measured in `measuring`, when evaluations happen is `training`'s.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from kdray.data.batches import ordered_batches
from kdray.data.rows import Rows
from kdray.slots.job import Worker


def compute_logits(
    model: nn.Module, rows: Rows, batch_size: int, worker: Worker, autocast: torch.dtype | None
) -> np.ndarray:
    """The logits of all rows (N x C, float32, in row order), on every rank. A collective call.

    Each rank computes its share of the same batches, so the numbers do not depend on how many ranks there are.
    """
    share = ordered_batches(rows.lengths, batch_size)[worker.rank :: worker.world]
    outputs: list[Tensor] = []
    with evaluation_mode(model), torch.autocast(worker.device.type, dtype=autocast, enabled=autocast is not None):
        for indices in share:
            inputs = rows.batch(indices, worker.pad_multiple).to(worker.device).inputs
            outputs.append(model(**inputs).logits)
            worker.progress += 1
    # One copy from the device at the end: copying each batch would wait for it.
    logits = torch.cat(outputs).float().cpu().numpy() if outputs else None
    return _in_row_order(len(rows), worker.all_gather((share, logits)))


def agreement(student_logits_NxC: np.ndarray, teacher_logits_NxC: np.ndarray) -> float:
    """The share of rows for which the student's class is the teacher's."""
    return float(np.mean(student_logits_NxC.argmax(axis=-1) == teacher_logits_NxC.argmax(axis=-1)))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode without gradients, and back in its mode afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _in_row_order(rows: int, shares: list[tuple[list[np.ndarray], np.ndarray | None]]) -> np.ndarray:
    computed = [(np.concatenate(batches), logits) for batches, logits in shares if logits is not None]
    logits_NxC = np.empty((rows, computed[0][1].shape[1]), dtype=np.float32)
    for indices, logits in computed:
        logits_NxC[indices] = logits
    return logits_NxC
