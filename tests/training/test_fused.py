"""Students that are trained as one batch of models get the reports, weights and checkpoints that they get alone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdray.data.rows import Rows
from kdray.errors import JobError
from kdray.losses.distillation import Distillation, Targets
from kdray.losses.distribution import Distribution
from kdray.losses.objective import Objective
from kdray.losses.sigmoid import Sigmoid
from kdray.losses.softmax import SOFTMAX
from kdray.losses.value import Value
from kdray.models.pretrained import Pretrained
from kdray.slots.job import Instruction, JobEnd, Report, Worker
from kdray.training.checkpoint_files import read_checkpoint
from kdray.training.fit import TrainingPlan, fit
from kdray.training.fused import End, FusedStudent, fit_together, problem_of_batch
from kdray.training.fused_loss import FusedObjective
from kdray.training.fused_step import Stack
from kdray.training.settings import Training
from kdray.training.trial import Recipe, Trial, TrialInputs, read_reports

TRAINING = Training(epochs=2, batch_size=64, learning_rate=1e-3, precision="fp32", checkpoint_minutes=0)
TIMES = ("examples_per_s", "train_seconds", "eval_seconds")
SETTINGS = (
    (Distillation(temperature=1.5, alpha=0.3), {"learning_rate": 3e-3, "clip_norm": 0.1}),
    (Distillation(temperature=4.0, alpha=0.9, logit_mse=0.2), {"weight_decay": 0.5, "warmup": 0.5}),
    (Distillation(alpha=0.0, alpha_end=1.0, schedule="linear"), {"epochs": 3, "evaluations_per_epoch": 2}),
)
"""What three students differ in: their losses, and the settings of their trainings."""


@dataclass
class Bench:
    """Trains students of two layers with dropout, alone or together."""

    source: Pretrained
    rows: Rows

    def model(self) -> nn.Module:
        recipe = Recipe().with_dotted({"student.depth": 2, "student.dropout": 0.1})
        return recipe.student.build(self.source.model(), 0)

    def plan(self, number: int, **changes: Any) -> TrainingPlan:
        distillation, settings = SETTINGS[number]
        plan = {"evaluate": lambda model, last: {"last": float(last)}, "checkpoint": None} | changes
        return TrainingPlan(
            rows=self.rows,
            training=TRAINING.with_dotted(settings | plan.pop("settings", {})),
            objective=Objective(distillation, SOFTMAX),
            seed=1,
            **plan,
        )


@pytest.fixture(scope="module")
def bench(trial_inputs: TrialInputs) -> Bench:
    return Bench(trial_inputs.source, trial_inputs.rows("train", Worker()))


@pytest.fixture(scope="module")
def alone(bench: Bench) -> list[tuple[nn.Module, list[Report]]]:
    """The students that are trained alone, with their reports."""
    models = [bench.model() for _ in SETTINGS]
    return [(model, list(fit(model, bench.plan(number), Worker()))) for number, model in enumerate(models)]


def nothing() -> Instruction:
    return Instruction.NOTHING


def check_weights(model: nn.Module, expected: nn.Module) -> None:
    weights = dict(model.named_parameters())
    for name, other in expected.named_parameters():
        # Attention does not depend on the bias of its keys, so AdamW moves it by rounding alone.
        if not name.endswith("key.bias"):
            torch.testing.assert_close(weights[name], other, rtol=0, atol=1e-5)


def check_reports(reports: Sequence[Report | JobEnd], expected: Sequence[Report]) -> None:
    """Compare reports without times; their numbers may differ by rounding."""
    assert len(reports) == len(expected)
    for one, other in zip(map(without_times, reports), map(without_times, expected), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def without_times(report: Any) -> Report:
    return {name: value for name, value in report.items() if name not in TIMES}


@dataclass
class Together:
    """Students that are trained together, with what they report and how they end."""

    students: list[FusedStudent]
    reports: dict[int, list[Report]] = field(default_factory=dict)
    ends: dict[int, End] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[int, Report | End]]:
        for number, report in fit_together(self.students, Worker()):
            if isinstance(report, End):
                self.ends[number] = report
            else:
                self.reports.setdefault(number, []).append(report)
            yield number, report

    def run(self) -> "Together":
        for _ in self:
            pass
        return self


Alone = list[tuple[nn.Module, list[Report]]]


def test_students_get_the_numbers_that_they_get_alone(bench: Bench, alone: Alone) -> None:
    together = Together([FusedStudent(bench.model(), bench.plan(number), nothing) for number in range(3)]).run()
    for number, student in enumerate(together.students):
        model, reports = alone[number]
        assert len(reports) == (6 if number == 2 else 2)
        check_reports(together.reports[number], reports)
        assert together.ends[number] == End(tuple(together.reports[number]))
        check_weights(student.model, model)
        assert not student.model.training


def test_a_student_that_is_stopped_leaves_the_others_as_they_are(bench: Bench, alone: Alone) -> None:
    instructions = [Instruction.NOTHING] * 3
    students = [FusedStudent(bench.model(), bench.plan(n), lambda n=n: instructions[n]) for n in range(3)]
    together = Together(students)
    for number, _ in together:
        if number == 1:
            instructions[1] = Instruction.END
    assert len(together.reports[1]) == 1
    assert together.ends[1] == End()
    for number in (0, 2):
        model, reports = alone[number]
        check_reports(together.reports[number], reports)
        check_weights(students[number].model, model)


def test_suspended_students_continue_alone_and_together(bench: Bench, alone: Alone, tmp_path: Path) -> None:
    """Two continue together although one of them continued alone before, and is ahead."""
    files = [tmp_path / f"{number}.pt" for number in range(3)]

    def student(number: int, instruction: Callable[[], Instruction]) -> FusedStudent:
        return FusedStudent(bench.model(), bench.plan(number, checkpoint=files[number]), instruction)

    seen: list[int] = []

    def suspend_later() -> Instruction:
        return Instruction.SUSPEND if len(seen) > 3 else Instruction.NOTHING

    cut = Together([student(number, suspend_later) for number in range(3)])
    for number, _ in cut:
        seen.append(number)
    assert cut.ends == dict.fromkeys(range(3), End())
    position = read_checkpoint(files[0])["at"]["step"]
    assert 0 < position < 10

    model = bench.model()
    check_reports(list(fit(model, bench.plan(0, checkpoint=files[0]), Worker())), alone[0][1])
    check_weights(model, alone[0][0])

    stopping = Worker(instruction=lambda: Instruction.SUSPEND)
    list(fit(bench.model(), bench.plan(1, checkpoint=files[1]), stopping))
    assert read_checkpoint(files[1])["at"]["step"] == position + 1
    together = Together([student(number, nothing) for number in (1, 2)]).run()
    for place, number in enumerate((1, 2)):
        check_reports(together.reports[place], alone[number][1])
        check_weights(together.students[place].model, alone[number][0])


def test_an_error_of_one_student_is_its_end(bench: Bench, alone: Alone) -> None:
    def fail(model: nn.Module, last: bool) -> dict[str, float]:
        raise JobError("no disk")

    plans = [bench.plan(0), bench.plan(1, evaluate=fail), bench.plan(2, settings={"learning_rate": 1e30})]
    together = Together([FusedStudent(bench.model(), plan, nothing) for plan in plans]).run()
    assert str(together.ends[1].error) == "no disk"
    assert "not finite" in str(together.ends[2].error)
    check_reports(together.reports[0], alone[0][1])


def test_bf16_and_small_pieces_are_those_of_a_student_alone(bench: Bench) -> None:
    settings = {"precision": "bf16", "microbatch": 24, "epochs": 1}
    plans = [bench.plan(number, settings=settings) for number in (0, 1)]
    together = Together([FusedStudent(bench.model(), plan, nothing) for plan in plans]).run()
    for number in (0, 1):
        reports = list(fit(bench.model(), bench.plan(number, settings=settings), Worker()))
        for name in ("train_loss", "share_soft"):
            assert together.reports[number][0][name] == pytest.approx(reports[0][name], rel=0.02)


@pytest.mark.parametrize("soft", ["kl", "reverse_kl", "jsd", "tvd", "mse", "dkd", "dist"])
def test_the_losses_are_those_of_each_student(soft: str) -> None:
    common = {"soft": soft, "standardize": soft == "kl"}
    settings = [
        Distillation(temperature=1.0, alpha=0.2, **common),
        Distillation(temperature=5.0, alpha=0.7, logit_mse=0.3, **common),
        Distillation(temperature=3.0, alpha=1.0, trust=0.25, **common),
        Distillation(temperature=2.0, alpha=0.6, **common),
        Distillation(alpha=0.0),
    ]
    generator = torch.Generator().manual_seed(0)
    targets = Targets(torch.tensor([0, 2, -1, 1]), torch.randn((4, 3), generator=generator), gold_weight=4 / 3)
    check_losses(settings, SOFTMAX, targets, torch.randn((5, 4, 3), generator=generator))


@pytest.mark.parametrize("distribution", [Sigmoid(), Value(1.0, 2.0)])
def test_the_losses_are_those_of_other_distributions(distribution: Distribution) -> None:
    is_value = isinstance(distribution, Value)
    settings = [Distillation(temperature=1.0, alpha=0.2), Distillation(temperature=5.0, alpha=0.7)]
    outputs = 1 if is_value else 3
    gold = torch.tensor([1.0, torch.nan]) if is_value else torch.tensor([[0, 1, 1], [-1, -1, -1]])
    generator = torch.Generator().manual_seed(0)
    targets = Targets(gold, torch.randn((2, outputs), generator=generator))
    check_losses(settings, distribution, targets, torch.randn((2, 2, outputs), generator=generator))


def check_losses(
    settings: list[Distillation], distribution: Distribution, targets: Targets, students_NxAxC: torch.Tensor
) -> None:
    """Compare losses, their terms and their gradients with those of each student."""
    students_NxAxC.requires_grad_()
    together = FusedObjective(settings, distribution, torch.device("cpu"))
    loss = together.loss(students_NxAxC, targets, [0.0] * len(settings))
    (gradients,) = torch.autograd.grad(loss.total, students_NxAxC)
    for number, own in enumerate(settings):
        student_AxC = students_NxAxC[number].detach().requires_grad_()
        expected = own.loss(student_AxC, targets, distribution)
        assert together.names[number] == expected.terms.keys()
        for name, value in expected.terms.items():
            torch.testing.assert_close(loss.terms[name][number], value)
        (gradient,) = torch.autograd.grad(expected.total, student_AxC)
        torch.testing.assert_close(gradients[number], gradient)


def test_what_cannot_be_one_batch_of_models_is_said(trial_inputs: TrialInputs, tmp_path: Path) -> None:
    def problem(recipe: Recipe, worker: Worker | None = None) -> str:
        trial = Trial(recipe=recipe, inputs=trial_inputs, seed=0, target=tmp_path / "student")
        model, distribution = trial.build(Worker())
        student = FusedStudent(model, trial.plan(model, distribution, Worker()), nothing)
        return problem_of_batch([student], worker or Worker())

    recipe = Recipe().with_dotted({"student.depth": 1})
    assert problem(recipe) == ""
    assert "several workers" in problem(recipe, Worker(world=2))
    assert "float32 or bf16" in problem(recipe.with_dotted({"training.quantised": "int8"}))


@pytest.fixture
def trials(recipe: Recipe, trial_inputs: TrialInputs, tmp_path: Path) -> list[Trial]:
    changes = [{"distillation.alpha": 0.2}, {"distillation.temperature": 5.0, "training.learning_rate": 1e-3}]
    return [
        Trial(recipe=recipe.with_dotted(each), inputs=trial_inputs, seed=0, target=tmp_path / str(n) / "student")
        for n, each in enumerate(changes)
    ]


def test_fused_trials_write_the_students_of_each_trial(trials: list[Trial], tmp_path: Path) -> None:
    reports = list(trials[0].fused_with(trials[1:])(Worker(), [nothing, nothing]))
    for number, trial in enumerate(trials):
        own = [report for place, report in reports if place == number]
        assert own[-1] == JobEnd()
        assert own[:-1] == list(read_reports(trial.target))
        same = Trial(recipe=trial.recipe, inputs=trial.inputs, seed=0, target=tmp_path / f"alone{number}" / "student")
        check_reports(own[:-1], list(same(Worker())))
        check_weights(Pretrained(trial.target, "a").model(), Pretrained(same.target, "b").model())


def test_trials_are_run_one_after_the_other_where_they_do_not_fit_together(
    trials: list[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("too many")

    monkeypatch.setattr(Stack, "step", fail)
    reports = list(trials[0].fused_with(trials[1:])(Worker(), [nothing, lambda: Instruction.END]))
    assert [number for number, report in reports if report == JobEnd()] == [0, 1]
    assert trials[0].has_ended
    assert not trials[1].has_ended


def test_trials_with_the_same_computation_have_the_same_key(trials: list[Trial], trial_inputs: TrialInputs) -> None:
    def key(changes: dict[str, Any], seed: int = 0) -> str:
        recipe = trials[0].recipe.with_dotted(changes)
        return Trial(recipe=recipe, inputs=trial_inputs, seed=seed, target=trials[0].target).fuse_key

    assert trials[0].fuse_key == trials[1].fuse_key == key({"training.epochs": 9, "distillation.soft": "jsd"}) != ""
    others = [key({"student.depth": 3}), key({"training.batch_size": 8}), key({"student.dropout": 0.3}), key({}, 1)]
    assert len({trials[0].fuse_key, *others}) == 5
    assert key({"distillation.hidden_mse": 1.0}) == key({"training.quantised": "int8"}) == ""
