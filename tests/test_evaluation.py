"""Predictions come in row order whatever the batches and ranks; size is the file's; latency leaves no trace."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from kdray.errors import SpecError
from kdray.evaluation import Latency, agreement, costs, hardware, measured_latency, parameters, predictions, size_mb
from kdray.tokens import Batch
from kdray.worker import Worker

TINY: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
CPU = torch.device("cpu")
QUICK = Latency(length=8, warmup=1, repeats=4)


@pytest.fixture
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**TINY, initializer_range=0.5)).eval()


@dataclass
class FewRows:
    """Rows of different lengths, as `predictions` reads them."""

    texts: list[torch.Tensor]

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(text) for text in self.texts], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, indices: np.ndarray, multiple: int = 1) -> Batch:
        ids = torch.nn.utils.rnn.pad_sequence([self.texts[row] for row in indices], batch_first=True)
        inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
        return Batch(inputs, torch.zeros(len(indices), dtype=torch.long), indices)


@pytest.fixture
def rows() -> FewRows:
    random = torch.Generator().manual_seed(0)
    return FewRows([torch.randint(1, 50, (length,), generator=random) for length in (9, 3, 17, 3, 8, 21, 5)])


class Rank(Worker):
    """One rank of a group whose ranks are threads."""

    def gathered(self, value: Any) -> list[Any]:
        values, barrier = self.warm["group"]
        values[self.rank] = value
        barrier.wait(timeout=60)
        return values


def test_predictions_are_each_row_s_own_logits(model, rows):
    alone = torch.cat([model(text[None]).logits for text in rows.texts]).detach().numpy()
    found = predictions(model, rows, 3, Worker(), None)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, alone, atol=1e-5)


@pytest.mark.parametrize("world", [2, 6])
def test_predictions_do_not_depend_on_the_number_of_ranks(model, rows, world):
    group = ([None] * world, Barrier(world))
    ranks = [Rank(rank, world, warm={"group": group}) for rank in range(world)]
    with ThreadPoolExecutor(world) as threads:
        found = list(threads.map(lambda rank: predictions(model, rows, 2, rank, None), ranks))
    alone = predictions(model, rows, 2, Worker(), None)
    assert all(np.array_equal(logits, alone) for logits in found)


def test_predictions_leave_the_model_in_its_mode(model, rows):
    model.train()
    first, again = (predictions(model, rows, 3, Worker(), None) for _ in range(2))
    assert np.array_equal(first, again)
    assert model.training
    assert model(rows.texts[0][None]).logits.requires_grad


def test_predictions_under_autocast_are_close_and_float32(model, rows):
    half = predictions(model, rows, 3, Worker(), torch.bfloat16)
    exact = predictions(model, rows, 3, Worker(), None)
    assert half.dtype == np.float32
    assert not np.array_equal(half, exact)
    np.testing.assert_allclose(half, exact, atol=0.2)


def test_agreement_is_the_share_of_equal_classes():
    ours, theirs = np.array([[1.0, 0], [0, 1], [3, 2], [0, 1]]), np.array([[9.0, 0], [0, 9], [2, 3], [0, 2]])
    assert agreement(ours, theirs) == 0.75


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_size_is_that_of_the_saved_file(model, family, dtype, tmp_path):
    if family == "modernbert":
        model = ModernBertForSequenceClassification(ModernBertConfig(**TINY, **SPECIAL))
    model.to(dtype).save_pretrained(tmp_path)
    assert size_mb(model) * 1e6 == pytest.approx((tmp_path / "model.safetensors").stat().st_size, abs=1e-6)


def test_a_shared_parameter_counts_once():
    layer = torch.nn.Linear(3, 4)
    assert parameters(torch.nn.Sequential(layer, torch.nn.Linear(4, 3, bias=False), layer)) == 16 + 12


def test_costs_name_what_an_architecture_costs(model):
    found = costs(model, QUICK, CPU)
    assert set(found) == {"latency_ms", "latency_p95_ms", "parameters", "size_mb"}
    assert 0 < found["latency_ms"] <= found["latency_p95_ms"]
    assert found["parameters"] == parameters(model)


def test_a_deeper_model_takes_longer():
    shallow, deep = (BertForSequenceClassification(BertConfig(**TINY | {"num_hidden_layers": n})) for n in (1, 12))
    faster, slower = (measured_latency(model, QUICK, CPU).p50 for model in (shallow, deep))
    assert slower > 2 * faster


def test_measuring_leaves_no_trace(model):
    model.train().to(torch.bfloat16)
    threads = torch.get_num_threads()
    seen: list[tuple[int, torch.Size, bool]] = []

    def watch(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append((torch.get_num_threads(), inputs[0].shape, module.training))

    model.bert.encoder.layer[0].register_forward_pre_hook(watch)
    measured_latency(model, Latency(batch_size=2, length=8, threads=2, warmup=1, repeats=3), CPU)
    assert seen == [(2, (2, 8, 16), False)] * 4
    assert torch.get_num_threads() == threads
    assert model.training
    assert model.dtype == torch.bfloat16


def test_roberta_is_measured_up_to_its_last_place():
    model = RobertaForSequenceClassification(RobertaConfig(**TINY))
    assert measured_latency(model, Latency(length=38, warmup=0, repeats=1), CPU).p50 > 0
    with pytest.raises(SpecError, match=r"latency\.length: got 39, but this roberta model reads at most 38 tokens"):
        measured_latency(model, Latency(length=39), CPU)


def test_hardware_has_a_name():
    assert hardware() == hardware(CPU) != ""
