"""Golden numbers of a distillation of 20 steps in float32. If they change, the mathematics has changed.

All inputs come from seeds and formulas. A commit that intends to change the numbers, by another loss, student, batch
order or training loop, writes the new numbers here and gives the reason in its message.
"""

import numpy as np
import pytest
from torch import nn

from kdray.data.rows import Rows
from kdray.data.tokens import TokenSet
from kdray.evaluation.outputs import compute_logits
from kdray.evaluation.quality import student_quality
from kdray.losses.distillation import Distillation
from kdray.losses.objective import Objective
from kdray.losses.softmax import SOFTMAX
from kdray.models.pretrained import Pretrained
from kdray.slots.job import Worker
from kdray.students.transformer import TransformerStudent
from kdray.tasks.task import Outputs
from kdray.tasks.text_classification import TextClassification
from kdray.training.fit import TrainingPlan, fit
from kdray.training.settings import Training

GOLDEN = {
    "epoch": 4.0,
    "step": 20,
    "learning_rate": 0.01 / 18,
    "train_loss": 0.68035938,
    "share_soft": 0.65493443,
    "share_hard": 0.19483728,
    "share_logit_mse": 0.15022829,
    "accuracy": 81 / 96,
    "macro_f1": 0.84373304,
    "mcc": 0.69205699,
    "loss": 0.40090191,
    "agreement": 81 / 96,
    "retention": 81 / 96,
    "weights": 1095.29078,
}
"""If each initial weight of the student is rounded differently, these numbers change by less than 1e-5."""


def with_teacher_logits(rows: Rows) -> Rows:
    """The rows with the logits of a teacher that is always right, and less certain for each following row."""
    size_N = 3.0 - 2.5 * np.arange(len(rows)) / len(rows)
    return rows.with_logits(np.stack([np.where(rows.gold == label, size_N, -size_N) for label in (0, 1)], axis=1))


def train_20_steps(source: Pretrained, tokens: TokenSet, task: TextClassification) -> dict[str, float]:
    """Train a student for 20 steps on 320 rows. Return its last report and the sum of the sizes of its weights."""
    train, validation = with_teacher_logits(tokens.rows("train")), with_teacher_logits(tokens.rows("validation"))
    model = TransformerStudent(depth=2).build(source.model(), seed=0)
    distillation = Distillation(temperature=3.0, alpha=0.6, logit_mse=0.05)

    def evaluate(model: nn.Module, last: bool) -> dict[str, float]:
        student = Outputs(compute_logits(model, validation, 32, Worker(), None))
        return student_quality(task, student, Outputs(validation.teacher_logits()), validation)

    training = Training(epochs=4, batch_size=64, learning_rate=1e-2, precision="fp32")
    plan = TrainingPlan(
        rows=train, training=training, objective=Objective(distillation, SOFTMAX), evaluate=evaluate, seed=0
    )
    *_, report = fit(model, plan, Worker())
    sums = [parameter.detach().double().abs().sum() for parameter in model.parameters()]
    times = ("examples_per_s", "train_seconds", "eval_seconds")
    return {name: value for name, value in report.items() if name not in times} | {"weights": float(sum(sums))}


def test_20_steps_give_the_golden_numbers(source: Pretrained, tokens: TokenSet, task: TextClassification) -> None:
    numbers = train_20_steps(source, tokens, task)
    assert numbers == pytest.approx(GOLDEN, rel=1e-4), f"{numbers}"
