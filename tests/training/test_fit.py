"""The training loop: its reports, its continuation after an interruption, and the equality of one and two workers."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import DebertaConfig, DebertaForSequenceClassification

from kdray.data.tokens import TokenSet
from kdray.data.transfer_set import TransferSet
from kdray.errors import JobError, SpecError
from kdray.evaluation.outputs import compute_logits
from kdray.evaluation.quality import student_quality
from kdray.losses.distillation import Distillation, Loss, Targets
from kdray.losses.objective import Objective
from kdray.losses.softmax import SOFTMAX
from kdray.models.pretrained import Pretrained
from kdray.slots.job import NOTE, Instruction, Report, Worker
from kdray.tasks.task import Outputs
from kdray.training.checkpoint import CheckpointManager, Position, RunningSums
from kdray.training.fit import TrainingPlan, fit
from kdray.training.precision import autocast_dtype
from kdray.training.settings import Training
from kdray.training.step import adamw
from kdray.training.trial import Recipe, TrialInputs
from tests.training.two_workers import run_two_workers

TRAINING = Training(epochs=2, batch_size=32, learning_rate=1e-3, precision="fp32", checkpoint_evaluations=1)
DISTILLATION = Distillation(alpha=0.7, logit_mse=0.1)
CPU = torch.device("cpu")


@dataclass
class Trainer:
    """Trains students of two layers on rows with teacher logits."""

    source: Pretrained
    tokens: TokenSet
    transfer: TransferSet

    def model(self) -> nn.Module:
        return Recipe().with_dotted({"student.depth": 2, "student.dropout": 0.1}).student.build(self.source.model(), 0)

    def fit(self, model: nn.Module, training: Training = TRAINING, seed: int = 0, **changes: Any) -> Iterator[Report]:
        rows = self.transfer.rows(self.tokens, "train")
        worker = changes.pop("worker", Worker())
        plan = {"evaluate": lambda model, last: {"last": float(last)}} | changes
        return fit(
            model,
            TrainingPlan(rows=rows, training=training, objective=Objective(DISTILLATION, SOFTMAX), seed=seed, **plan),
            worker,
        )


@pytest.fixture
def trainer(teacher: Pretrained, tokens: TokenSet, transfer: TransferSet) -> Trainer:
    return Trainer(teacher, tokens, transfer)


def weights(model: nn.Module) -> torch.Tensor:
    """All parameters as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def without_times(reports: list[Report]) -> list[Report]:
    times = ("examples_per_s", "train_seconds", "eval_seconds")
    return [{name: value for name, value in report.items() if name not in times} for report in reports]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("learning_rate", 0),
        ("learning_rate", -1e-4),
        ("epochs", 0),
        ("batch_size", 0),
        ("warmup", 1.0),
        ("clip_norm", 0),
        ("precision", "fp16"),
        ("learning_rate", float("inf")),
    ],
)
def test_bad_settings_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(SpecError, match=rf"Training\.{setting}: got"):
        Training(**{setting: value})


def test_the_learning_rate_rises_and_falls() -> None:
    training = Training(learning_rate=1.0, warmup=0.2)
    rates = [training.learning_rate_at(step, 20) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == [(20 - step) / 16 for step in range(4, 20)]
    assert [Training(learning_rate=1.0, warmup=0).learning_rate_at(step, 4) for step in range(4)] == [
        1,
        0.75,
        0.5,
        0.25,
    ]


def without_dropout(model: nn.Module) -> nn.Module:
    """Switch dropout off in the model, and return the model."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def test_each_evaluation_has_a_report(trainer: Trainer) -> None:
    training = TRAINING.with_dotted({"evaluations_per_epoch": 3, "batch_size": 64})
    reports = list(trainer.fit(without_dropout(trainer.model()), training))
    assert [report["step"] for report in reports] == [2, 4, 5, 7, 9, 10]
    assert [report["epoch"] for report in reports] == [0.4, 0.8, 1.0, 1.4, 1.8, 2.0]
    assert [report["last"] for report in reports] == [0, 0, 0, 0, 0, 1]
    assert reports[-1]["train_loss"] < reports[0]["train_loss"]
    for report in reports:
        shares = [report[f"share_{name}"] for name in ("soft", "hard", "logit_mse")]
        assert sum(shares) == pytest.approx(1)
        assert min(shares) > 0


def test_the_reported_loss_is_the_mean_over_all_rows(trainer: Trainer) -> None:
    """With a learning rate near 0 it is the loss of the untrained model. The last batch has fewer than 48 rows."""
    model, rows = without_dropout(trainer.model()).eval(), trainer.transfer.rows(trainer.tokens, "train")
    batch = rows.batch(np.arange(len(rows)))
    with torch.inference_mode():
        logits = model(**batch.inputs).logits
        expected = DISTILLATION.loss(logits, Targets(batch.gold, batch.teacher_logits_AxC), SOFTMAX).total_A.mean()
    training = Training(epochs=1, batch_size=48, learning_rate=1e-30, precision="fp32", weight_decay=0)
    (report,) = trainer.fit(model, training)
    assert report["train_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_the_same_seed_gives_the_same_weights(trainer: Trainer) -> None:
    models = [trainer.model() for _ in range(3)]
    reports = [list(trainer.fit(model, seed=seed)) for model, seed in zip(models, (1, 1, 2), strict=True)]
    assert without_times(reports[0]) == without_times(reports[1]) != without_times(reports[2])
    assert torch.equal(weights(models[0]), weights(models[1]))


@pytest.mark.parametrize("cut_after", [1, 2, 3])
def test_a_training_that_is_cut_off_gives_the_same_numbers(trainer: Trainer, tmp_path: Path, cut_after: int) -> None:
    """Dropout and the order of the rows continue too. The continued training reports all evaluations again.

    An epoch has 10 steps, and evaluations after 5 and 10 of them.
    """
    training = TRAINING.with_dotted({"evaluations_per_epoch": 2})
    uninterrupted, first, second = trainer.model(), trainer.model(), trainer.model()
    expected = without_times(list(trainer.fit(uninterrupted, training)))
    cut_off = trainer.fit(first, training, checkpoint=tmp_path / "at.pt")
    for _ in range(cut_after):
        next(cut_off)
    cut_off.close()
    torch.manual_seed(99)  # the random state must come from the checkpoint
    assert without_times(list(trainer.fit(second, training, checkpoint=tmp_path / "at.pt"))) == expected
    assert torch.equal(weights(second), weights(uninterrupted))


@pytest.mark.parametrize("step", [1, 7, 10, 13, 19])
def test_a_training_suspended_at_any_step_continues_from_that_step(trainer: Trainer, tmp_path: Path, step: int) -> None:
    """Also within an epoch: the sums since the last evaluation are in the checkpoint."""
    uninterrupted, first, second = trainer.model(), trainer.model(), trainer.model()
    expected = without_times(list(trainer.fit(uninterrupted)))
    training, path = TRAINING.with_dotted({"checkpoint_evaluations": 0}), tmp_path / "at.pt"
    suspended = trainer.fit(first, training, worker=instructed_worker(step, Instruction.SUSPEND), checkpoint=path)
    assert without_times(list(suspended)) == expected[: step // 10]
    worker = Worker()
    assert without_times(list(trainer.fit(second, training, worker=worker, checkpoint=path))) == expected
    assert worker.progress == 20 - step
    assert torch.equal(weights(second), weights(uninterrupted))


def test_a_checkpoint_by_the_clock_is_written_before_the_end_of_an_epoch(trainer: Trainer, tmp_path: Path) -> None:
    training = TRAINING.with_dotted({"checkpoint_evaluations": 0, "checkpoint_minutes": 1e-9})
    first = trainer.fit(
        trainer.model(), training, worker=instructed_worker(5, Instruction.END), checkpoint=tmp_path / "at.pt"
    )
    assert list(first) == []
    worker = Worker()
    assert len(list(trainer.fit(trainer.model(), TRAINING, worker=worker, checkpoint=tmp_path / "at.pt"))) == 2
    assert worker.progress == 16


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["truncated", "a byte flipped", "empty"])
def test_a_damaged_checkpoint_is_said_and_never_used(trainer: Trainer, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "at.pt"
    list(trainer.fit(trainer.model(), worker=instructed_worker(12, Instruction.SUSPEND), checkpoint=path))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"truncated": data[:-100], "a byte flipped": data, "empty": b""}[damage])
    first, *rest = trainer.fit(trainer.model(), checkpoint=path)
    assert re.fullmatch(r".*at.pt: the checkpoint is damaged: .* started again from the beginning\.", first[NOTE])
    assert without_times(rest) == without_times(list(trainer.fit(trainer.model())))


class RankBesideADamagedOne(Worker):
    """Rank 0 of two; the other rank cannot read its copy of the checkpoint."""

    def all_gather(self, value: Any) -> list[Any]:
        return [value, False if isinstance(value, bool) else "the copy of rank 1 is damaged."]


def test_no_rank_continues_from_a_checkpoint_that_another_rank_cannot_read(trainer: Trainer, tmp_path: Path) -> None:
    path = tmp_path / "at.pt"
    list(trainer.fit(trainer.model(), worker=instructed_worker(12, Instruction.SUSPEND), checkpoint=path))
    model = trainer.model()
    optimizer = adamw(model, TRAINING)
    checkpoints = CheckpointManager(
        path=path, training=TRAINING, model=model, optimizer=optimizer, worker=RankBesideADamagedOne()
    )
    assert checkpoints.restore()[0] == Position()
    assert checkpoints.reports == [
        {NOTE: "the copy of rank 1 is damaged. The training started again from the beginning."}
    ]
    assert not optimizer.state


def test_no_checkpoint_is_written_before_it_is_due(trainer: Trainer, tmp_path: Path) -> None:
    training = TRAINING.with_dotted({"checkpoint_evaluations": 0, "evaluations_per_epoch": 5})
    list(trainer.fit(trainer.model(), training, checkpoint=tmp_path / "at.pt"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rate", [1e30, 1e38])
def test_a_loss_that_is_not_finite_ends_the_job(trainer: Trainer, rate: float) -> None:
    with pytest.raises(JobError, match=r"not finite \(nan or inf\) by step \d+; try a lower learning rate"):
        list(trainer.fit(trainer.model(), TRAINING.with_dotted({"learning_rate": rate})))


def instructed_worker(step: int, instruction: Instruction) -> Worker:
    """A worker that receives this instruction from the given step on."""
    worker = Worker()
    worker.instruction = lambda: instruction if worker.progress >= step else Instruction.NOTHING
    return worker


def test_a_training_ends_at_the_step_at_which_it_is_stopped(trainer: Trainer, tmp_path: Path) -> None:
    worker = instructed_worker(4, Instruction.END)
    assert list(trainer.fit(trainer.model(), worker=worker, checkpoint=tmp_path / "at.pt")) == []
    assert worker.progress == 4
    assert not list(tmp_path.iterdir())


def test_biases_and_normalisation_weights_do_not_decay(trainer: Trainer) -> None:
    model = trainer.model()
    decaying, others = adamw(model, Training(weight_decay=0.1)).param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in others["params"])
    assert not any("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in decaying["params"])
    assert len(decaying["params"]) + len(others["params"]) == len(names)


def test_bf16_and_fp32_reach_about_the_same_loss(trainer: Trainer) -> None:
    assert autocast_dtype("bf16", CPU, trainer.model()) is torch.bfloat16
    assert autocast_dtype("fp32", CPU, trainer.model()) is None
    assert autocast_dtype("auto", CPU, trainer.model()) in (None, torch.bfloat16)
    models = {precision: trainer.model() for precision in ("fp32", "bf16")}
    losses = {
        precision: list(trainer.fit(model, TRAINING.with_dotted({"precision": precision})))[-1]["train_loss"]
        for precision, model in models.items()
    }
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)
    assert losses["bf16"] != losses["fp32"]
    assert {parameter.dtype for parameter in models["bf16"].parameters()} == {torch.float32}


def test_a_gpu_continues_from_a_checkpoint_of_a_cpu(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint has the random state of the CPU, but none of a GPU."""
    worker = Worker(device=torch.device("cuda"))
    model = trainer.model()
    checkpoints = CheckpointManager(
        path=None, training=TRAINING, model=model, optimizer=adamw(model, TRAINING), worker=worker
    )
    monkeypatch.setattr(RunningSums, "from_state", lambda state, device: state)
    torch.manual_seed(5)
    rank = {"random": {"cpu": torch.get_rng_state()}, "sums": RunningSums()}
    expected = torch.rand(3)
    assert checkpoints._restore_rank([rank]) is rank["sums"]
    assert torch.equal(torch.rand(3), expected)


def test_auto_does_not_use_bf16_for_a_family_that_overflows_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    model = DebertaForSequenceClassification(DebertaConfig(**sizes, num_hidden_layers=1))
    monkeypatch.setattr("kdray.training.precision._cpu_has_bf16", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    ids, mask = torch.tensor([[5, 6, 0]]), torch.tensor([[1, 1, 0]])
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="without overflow"):
        model(input_ids=ids, attention_mask=mask)
    dtype = autocast_dtype("auto", CPU, model)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        assert torch.isfinite(model(input_ids=ids, attention_mask=mask).logits).all()


def _train_rank(worker: Worker, folder: Path, trial_inputs: TrialInputs) -> None:
    """The main function of one process of a slot: train a student; rank 0 writes its reports and weights to a file."""
    reports, model = _train(trial_inputs, worker)
    if worker.rank == 0:
        torch.save({"reports": reports, "weights": weights(model)}, folder / "done.pt")


def _train(trial_inputs: TrialInputs, worker: Worker) -> tuple[list[Report], nn.Module]:
    """Train a student without dropout, in batches of 33 rows: the two ranks get parts of different sizes, and the last
    batch has only 23 rows."""
    recipe = Recipe().with_dotted({"student.depth": 2, "student.dropout": 0.0})
    model = recipe.student.build(trial_inputs.source.model(), 0)
    torch.manual_seed(0)
    model.resize_token_embeddings(60, mean_resizing=False)  # tokens that no row has: the table is compact in training
    training = TRAINING.with_dotted({"batch_size": 33, "epochs": 1, "evaluations_per_epoch": 2})
    validation = trial_inputs.rows("validation", worker)

    def evaluate(model: nn.Module, last: bool) -> dict[str, float]:
        student = Outputs(compute_logits(model, validation, 32, worker, None))
        return student_quality(trial_inputs.task, student, Outputs(validation.teacher_logits()), validation)

    rows = trial_inputs.rows("train", worker)
    objective = Objective(recipe.distillation, SOFTMAX)
    plan = TrainingPlan(rows=rows, training=training, objective=objective, evaluate=evaluate, seed=0)
    return list(fit(model, plan, worker)), model


def test_two_workers_train_the_same_student_as_one(trial_inputs: TrialInputs, tmp_path: Path) -> None:
    expected, model = _train(trial_inputs, Worker())
    run_two_workers(_train_rank, tmp_path, trial_inputs)
    done = torch.load(tmp_path / "done.pt", weights_only=True)
    assert len(done["reports"]) == len(expected) == 2
    for report, alone in zip(without_times(done["reports"]), without_times(expected), strict=True):
        assert report == pytest.approx(alone, rel=1e-4)
    distance = torch.dist(done["weights"], weights(model)) / weights(model).norm()
    # AdamW divides by the size of the gradient, so rounding matters where a gradient is almost zero.
    assert distance < 1e-3


@pytest.mark.parametrize(("rows", "per_epoch", "expected"), [(40, 2, 6), (10, 2, 3), (11, 5, 6), (160, 10, 30)])
def test_the_number_of_evaluations_is_known_before_the_training(rows: int, per_epoch: int, expected: int) -> None:
    """An epoch with fewer steps than evaluations has one evaluation after each step."""
    assert Training(epochs=3, batch_size=10, evaluations_per_epoch=per_epoch).evaluation_count(rows) == expected


def test_a_rank_without_rows_adds_nothing_to_the_loss() -> None:
    sums = RunningSums()
    loss = Loss(torch.ones(1), {"hard": torch.tensor(0.7)})
    sums.add_loss(loss, 1, 1)
    sums.add_loss(loss, 0, 0)
    for _ in range(2):
        sums.add_norm(torch.tensor(1.0))
    assert (sums.rows, float(sums.norm), float(sums.terms["hard"])) == (1, 2.0, pytest.approx(0.7))
