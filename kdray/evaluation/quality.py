"""The quality of a student compared with its teacher on the same rows: task metrics, loss, agreement, retention.

Letters: N rows, C classes.
"""

import numpy as np
import torch
from torch.nn import functional

from kdray.data.rows import Rows
from kdray.evaluation.outputs import agreement
from kdray.tasks.task import Task


def student_quality(task: Task, logits_NxC: np.ndarray, rows: Rows) -> dict[str, float]:
    """The task's metrics, the hard loss, the agreement with the teacher, and the retention.

    The loss is the mean cross-entropy. Retention is the student's first metric over the teacher's, or 0 if the
    teacher's is 0. Raises LookupError if the rows have no teacher logits.
    """
    teacher_logits_NxC = rows.teacher_logits(np.arange(len(rows)))
    student, teacher = task.metrics(logits_NxC, rows.labels), task.metrics(teacher_logits_NxC, rows.labels)
    first = next(iter(student))
    return student | {
        "loss": float(functional.cross_entropy(torch.from_numpy(logits_NxC), torch.from_numpy(rows.labels).long())),
        "agreement": agreement(logits_NxC, teacher_logits_NxC),
        "retention": student[first] / teacher[first] if teacher[first] else 0.0,
    }
