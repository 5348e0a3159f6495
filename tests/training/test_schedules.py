"""Terms and schedules of the loss in whole trainings: the progress of a training, interruptions, batches.

`test_tasks` has a training with both on one worker and on two.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdray.data.tokens import TokenSet
from kdray.data.transfer_set import TransferSet
from kdray.losses.distillation import Distillation, Loss, Targets
from kdray.losses.objective import Objective
from kdray.losses.soft_terms import SOFT_TERMS
from kdray.losses.softmax import SOFTMAX
from kdray.losses.states import InnerTargets
from kdray.models.pretrained import Pretrained
from kdray.slots.job import Instruction, Report, Worker
from kdray.training.fit import TrainingPlan, fit
from kdray.training.settings import Training
from kdray.training.trial import Recipe, Trial, TrialInputs

InputsOf = Callable[[str], TrialInputs]
TIMES = ("examples_per_s", "train_seconds", "eval_seconds")
TRAINING = Training(epochs=2, batch_size=32, learning_rate=1e-3, precision="fp32", checkpoint_evaluations=1)
COOLING = Distillation(temperature=6.0, temperature_end=1.0, alpha=1.0, alpha_end=0.2, schedule="cosine")


class Watched(Objective):
    """An objective that notes the progress of the training at each step."""

    def __init__(self, distillation: Distillation, seen: list[float]) -> None:
        super().__init__(distillation, SOFTMAX)
        self.seen = seen

    def with_inner_terms(self, loss: Loss, targets: Targets, inner: InnerTargets | None = None) -> Loss:
        self.seen.append(targets.progress)
        return super().with_inner_terms(loss, targets, inner)


def without_times(reports: list[Report]) -> list[Report]:
    return [{name: value for name, value in report.items() if name not in TIMES} for report in reports]


def trial_of(inputs: TrialInputs, target: Path, distillation: Distillation) -> Trial:
    recipe = Recipe(training=TRAINING, distillation=distillation)
    recipe = recipe.with_dotted({"student.depth": 1, "training.evaluations_per_epoch": 2})
    return Trial(recipe=recipe, inputs=inputs, seed=0, target=target / "student")


@pytest.mark.parametrize("suspended_at", [1, 7, 13])
def test_the_progress_goes_from_0_to_1_also_after_an_interruption(
    teacher: Pretrained, tokens: TokenSet, transfer: TransferSet, tmp_path: Path, suspended_at: int
) -> None:
    seen: list[float] = []
    plan = TrainingPlan(
        rows=transfer.rows(tokens, "train"),
        training=TRAINING,
        objective=Watched(Distillation(), seen),
        evaluate=lambda model, last: {},
        seed=0,
        checkpoint=tmp_path / "at.pt",
    )
    student = Recipe().with_dotted({"student.depth": 1}).student
    worker = Worker()
    worker.instruction = lambda: Instruction.SUSPEND if worker.progress >= suspended_at else Instruction.NOTHING
    list(fit(student.build(teacher.model(), 0), plan, worker))
    assert len(seen) == suspended_at
    list(fit(student.build(teacher.model(), 0), plan, Worker()))
    assert seen == pytest.approx([step / 19 for step in range(20)])
    assert (seen[0], seen[-1]) == (0, 1)


def test_a_training_of_one_step_has_the_settings_of_its_start(
    teacher: Pretrained, tokens: TokenSet, transfer: TransferSet
) -> None:
    rows = transfer.rows(tokens, "train")
    seen: list[float] = []
    training = Training(epochs=1, batch_size=len(rows), precision="fp32")
    plan = TrainingPlan(
        rows=rows, training=training, objective=Watched(COOLING, seen), evaluate=lambda model, last: {}, seed=0
    )
    (report,) = fit(Recipe().with_dotted({"student.depth": 1}).student.build(teacher.model(), 0), plan, Worker())
    assert seen == [0]
    assert "share_hard" not in report


def test_a_schedule_changes_nothing_before_it_begins(trial_inputs: TrialInputs, tmp_path: Path) -> None:
    """It begins in the second of two epochs, each with two evaluations. The labels count from then on only."""
    constant = Distillation(temperature=3.0, alpha=1.0)
    later = constant.with_dotted({"schedule": "linear", "schedule_from": 0.5, "alpha_end": 0.0})
    first, second = (
        without_times(list(trial_of(trial_inputs, tmp_path / name, settings)(Worker())))
        for name, settings in (("constant", constant), ("later", later))
    )
    assert first[:2] == second[:2]
    assert "share_hard" not in first[-1]
    assert 0 < second[2]["share_hard"] < second[3]["share_hard"] < 1


def test_a_trial_with_a_schedule_that_is_cut_off_continues_with_the_same_numbers(
    trial_inputs: TrialInputs, tmp_path: Path
) -> None:
    one, other = (trial_of(trial_inputs, tmp_path / name, COOLING) for name in ("one", "other"))
    whole, second = Worker(), Worker()
    expected = without_times(list(one(whole)))
    cut_off = other(Worker())
    next(cut_off), next(cut_off)
    cut_off.close()
    assert without_times(list(other(second))) == expected
    assert 0 < second.progress < whole.progress  # it did not start again
    files = [(trial.target / "model.safetensors").read_bytes() for trial in (one, other)]
    assert files[0] == files[1]


@pytest.mark.parametrize("kind", ["token_classification", "multi_label"])
def test_padding_changes_no_term_and_other_rows_only_the_relations(inputs_of: InputsOf, kind: str) -> None:
    inputs = inputs_of(kind)
    rows = inputs.rows("train", Worker())
    distribution = inputs.task.distribution(rows.gold)
    model = Recipe().with_dotted({"student.depth": 1}).student.build(inputs.source.model(), 0).eval()
    few, many = np.arange(5), np.arange(40)

    def losses(settings: Distillation, indices: np.ndarray, multiple: int = 1) -> Tensor:
        batch = rows.batch(indices, multiple)
        with torch.inference_mode():
            outputs = batch.answers(model(**batch.inputs).logits)
            return settings.loss(outputs, Targets(batch.gold, batch.teacher_logits_AxC), distribution).total_A

    for soft, term in SOFT_TERMS.items():
        if not distribution.problem_of_term(term):
            settings = Distillation(soft=soft, temperature=3.0)
            alone = losses(settings, few)
            torch.testing.assert_close(losses(settings, few, 16), alone, rtol=1e-4, atol=1e-6)
            beside = losses(settings, many)[: len(alone)]
            assert torch.allclose(beside, alone, rtol=1e-4, atol=1e-5) == (soft != "dist")
