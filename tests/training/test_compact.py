"""A training with a compact table of embeddings gives the weights of one with the whole table."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from kdray.data.rows import Rows
from kdray.data.tokens import TokenSet
from kdray.data.transfer_set import TransferSet
from kdray.errors import JobError
from kdray.losses.distillation import Distillation
from kdray.losses.objective import Objective
from kdray.losses.softmax import SOFTMAX
from kdray.models.pretrained import Pretrained
from kdray.networks.static_model import StaticConfig, StaticForSequenceClassification
from kdray.slots.job import Instruction, Report, Worker
from kdray.students.transformer import TransformerStudent
from kdray.training import compact
from kdray.training.checkpoint_files import read_checkpoint
from kdray.training.compact import compact_table, whole_table
from kdray.training.fit import TrainingPlan, fit
from kdray.training.quantising import Quantising
from kdray.training.settings import Training
from tests.models.families import IDS, random_model, tiny_config

VOCABULARY = 90
"""The rows of the table; the training rows have less than a third of them."""
TRAINING = Training(
    epochs=2, batch_size=32, learning_rate=1e-3, weight_decay=0.1, precision="fp32", evaluations_per_epoch=2
)


@dataclass
class Trainer:
    """Trains students whose table has more rows than the training rows name."""

    source: Pretrained
    rows: Rows

    def model(self) -> PreTrainedModel:
        model = TransformerStudent(depth=1, dropout=0.1).build(self.source.model(), 0)
        torch.manual_seed(0)
        model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
        return model

    def fit(self, model: nn.Module, training: Training = TRAINING, **changes: Any) -> Iterator[Report]:
        worker = changes.pop("worker", Worker())
        objective = Objective(Distillation(alpha=0.7), SOFTMAX)
        plan: dict[str, Any] = {"evaluate": lambda model, last: {}, "rows": self.rows} | changes
        return fit(model, TrainingPlan(training=training, objective=objective, seed=0, **plan), worker)


@pytest.fixture
def trainer(teacher: Pretrained, tokens: TokenSet, transfer: TransferSet) -> Trainer:
    return Trainer(teacher, transfer.rows(tokens, "train"))


def table_of(model: nn.Module) -> torch.Tensor:
    return model.get_input_embeddings().weight.detach()  # type: ignore[operator]


def suspended_at(step: int) -> Worker:
    worker = Worker()
    worker.instruction = lambda: Instruction.SUSPEND if worker.progress >= step else Instruction.NOTHING
    return worker


@pytest.mark.parametrize("microbatch", [None, 12])
def test_the_weights_are_those_of_a_training_with_the_whole_table(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, microbatch: int | None
) -> None:
    """Evaluations see the whole table: the sum of its sizes is a metric here."""
    training = TRAINING.model_copy(update={"microbatch": microbatch})
    before = table_of(trainer.model()).clone()

    def evaluate(model: nn.Module, last: bool) -> dict[str, float]:
        assert table_of(model).shape == before.shape
        return {"size": float(table_of(model).double().abs().sum())}

    def train() -> tuple[PreTrainedModel, list[Report]]:
        model = trainer.model()
        return model, list(trainer.fit(model, training, evaluate=evaluate))

    model, reports = train()
    monkeypatch.setattr(compact, "MAX_SHARE", 0.0)
    expected, expected_reports = train()
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-6, atol=1e-6)
    assert [r["size"] for r in reports] == pytest.approx([r["size"] for r in expected_reports], rel=1e-6)
    assert [r["train_loss"] for r in reports] == pytest.approx([r["train_loss"] for r in expected_reports], rel=1e-6)
    kept = math.prod(1 - training.learning_rate_at(step, 20) * training.weight_decay for step in range(20))
    assert trainer.rows.token_ids is not None
    others = np.setdiff1d(np.arange(VOCABULARY), trainer.rows.token_ids)
    assert len(others) > VOCABULARY / 2
    torch.testing.assert_close(table_of(model)[others], before[others] * kept, rtol=1e-6, atol=0)


@pytest.mark.parametrize("step", [1, 7, 13])
def test_a_continued_training_gives_the_same_weights(trainer: Trainer, tmp_path: Path, step: int) -> None:
    uninterrupted, first, second = trainer.model(), trainer.model(), trainer.model()
    list(trainer.fit(uninterrupted))
    list(trainer.fit(first, worker=suspended_at(step), checkpoint=tmp_path / "at.pt"))
    list(trainer.fit(second, checkpoint=tmp_path / "at.pt"))
    for one, other in zip(second.parameters(), uninterrupted.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_has_the_form_of_one_without_a_compact_table(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a training continues from a checkpoint of either kind."""
    path, shapes, models = tmp_path / "at.pt", [], []
    for shares in ((0.9, 0.0), (0.0, 0.9)):
        monkeypatch.setattr(compact, "MAX_SHARE", shares[0])
        list(trainer.fit(trainer.model(), worker=suspended_at(7), checkpoint=path))
        moments = read_checkpoint(path)["optimizer"]["state"]
        shapes.append([{name: value.shape for name, value in moments[number].items()} for number in sorted(moments)])
        monkeypatch.setattr(compact, "MAX_SHARE", shares[1])
        models.append(trainer.model())
        assert all("note" not in report for report in trainer.fit(models[-1], checkpoint=path))
    assert shapes[0] == shapes[1]
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_a_stopped_training_leaves_the_whole_table(trainer: Trainer) -> None:
    model = trainer.model()
    parameter = model.get_input_embeddings().weight
    reports = trainer.fit(model)
    next(reports)
    reports.close()  # type: ignore[attr-defined]
    assert model.get_input_embeddings().weight is parameter
    assert parameter.shape[0] == VOCABULARY
    model(input_ids=torch.tensor([[VOCABULARY - 1]]))


def test_a_token_without_a_row_is_refused() -> None:
    model = random_model(tiny_config("bert"))
    with compact_table(model, np.unique(IDS), 0.0) as table:
        model(input_ids=IDS)
        with pytest.raises(JobError, match="the model looked up the token 34 in its training"):
            model(input_ids=torch.tensor([[2, 34]]))
        with whole_table(table):
            model(input_ids=torch.tensor([[2, 34]]))


@pytest.mark.parametrize("family", ["albert", "bert", "big_bird", "deberta-v2", "fnet", "gpt2", "roberta", "xlnet"])
def test_a_model_of_a_family_computes_the_same(family: str) -> None:
    config = tiny_config(family)
    model, expected = random_model(config), random_model(config)
    logits_of = {}
    with compact_table(model, np.unique(IDS), 0.0) as table:
        assert table is not None
        for name, each in (("compact", model), ("whole", expected)):
            logits_of[name] = each(input_ids=IDS, attention_mask=(IDS != 0).long()).logits
            logits_of[name].square().sum().backward()
        rows = table._ids_R
        assert len(rows) < len(table_of(expected))
        assert torch.equal(logits_of["compact"], logits_of["whole"])
        gradients = [each.get_input_embeddings().weight.grad for each in (model, expected)]
        assert torch.equal(gradients[0], gradients[1][rows])


def test_a_static_model_keeps_its_scores_of_all_tokens() -> None:
    model = StaticForSequenceClassification(StaticConfig(vocab_size=64, embedding_width=8, width=8, num_labels=3))
    with compact_table(model, np.unique(IDS), 0.0) as table:
        assert table is not None
        assert len(model.embeddings.weight) < 20
        assert len(model.encoder.get_parameter("scores.weight")) == 64
        model(input_ids=IDS).logits.sum().backward()


def test_a_table_that_something_else_uses_is_left_as_it_is(trainer: Trainer, tokens: TokenSet) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    tied = BertForMaskedLM(BertConfig(vocab_size=64, **sizes))
    frozen, sparse, shared = (random_model(tiny_config("bert")) for _ in range(3))
    frozen.get_input_embeddings().requires_grad_(False)
    sparse.get_input_embeddings().sparse = True
    shared.other = shared.get_input_embeddings()
    for model in (tied, frozen, sparse, shared, nn.Linear(2, 2)):
        with compact_table(model, np.unique(IDS), 0.0) as table:
            assert table is None
    model = random_model(tiny_config("bert"))
    for ids in (None, np.arange(60), np.array([1, 64])):  # unknown, nearly all, one that the table does not have
        with compact_table(model, ids, 0.0) as table:
            assert table is None


def test_a_training_for_int8_has_the_whole_table(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One scale for the whole table depends on all of its rows."""
    model, training = trainer.model(), TRAINING.model_copy(update={"quantised": "int8"})
    found: list[Any] = []

    def note_ids(model: nn.Module, ids: np.ndarray | None, weight_decay: float) -> Any:
        found.append(ids)
        return compact_table(model, ids, weight_decay)

    monkeypatch.setattr("kdray.training.fit.compact_table", note_ids)
    next(iter(trainer.fit(model, training, quantising=Quantising.of(model, training))))
    assert found == [None]
