"""The metrics of a student beside its teacher, on the same rows: task metrics, loss, agreement, retention."""

import numpy as np
import torch
from torch.nn import functional

from kdray.data.rows import Rows
from kdray.evaluation.outputs import agreement
from kdray.tasks.task import Task


def student_quality(task: Task, logits_NxC: np.ndarray, rows: Rows) -> dict[str, float]:
    """The task's metrics, the hard loss, and how the student compares with the teacher on these rows."""
    taught_NxC = rows.teacher_logits(np.arange(len(rows)))
    metrics, teacher = task.metrics(logits_NxC, rows.labels), task.metrics(taught_NxC, rows.labels)
    first = next(iter(metrics))
    return metrics | {
        "loss": float(functional.cross_entropy(torch.from_numpy(logits_NxC), torch.from_numpy(rows.labels).long())),
        "agreement": agreement(logits_NxC, taught_NxC),
        "retention": metrics[first] / teacher[first] if teacher[first] else 0.0,
    }
