"""The quality of a student compared with its teacher on the same rows: task metrics, loss, agreement, retention."""

import numpy as np
import torch

from kdray.data.rows import Rows
from kdray.tasks.counts import Metric
from kdray.tasks.task import Outputs, Task


def student_quality(task: Task, student: Outputs, teacher: Outputs, rows: Rows) -> dict[str, float]:
    """The task's metrics, the hard loss, the agreement with the teacher, and the retention.

    The loss is the mean over the answers, as it would be without a teacher.
    """
    values, teacher_values = task.values(student, rows), task.values(teacher, rows)
    quality = task.quality
    return values | {
        "loss": hard_loss(task, student.logits_AxC, rows),
        "agreement": task.agreement(student, teacher),
        "retention": retention(quality, values[quality.name], teacher_values[quality.name]),
    }


def retention(metric: Metric, student: float, teacher: float) -> float:
    """The share of the teacher's quality that the student keeps: above 1 if it is better; 0 if the divisor is 0."""
    better_if_more = metric.direction == "maximize"
    dividend, divisor = (student, teacher) if better_if_more else (teacher, student)
    return dividend / divisor if divisor else 0.0


def hard_loss(task: Task, logits_AxC: np.ndarray, rows: Rows) -> float:
    """The mean hard loss of these outputs over the answers with gold, in the units of the data."""
    distribution = task.distribution(rows.gold).for_data_units()
    losses_A = distribution.hard_loss(torch.from_numpy(logits_AxC), torch.from_numpy(rows.gold))
    _, with_gold = rows.count_answers(np.arange(len(rows)))
    return float(losses_A.sum() / with_gold)
