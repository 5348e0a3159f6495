"""Logits are in row order, for all batch sizes and numbers of ranks."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from kdray.data.rows import Batch
from kdray.evaluation.outputs import TOKENS_ON_CPU, compute_logits, evaluation_batches
from kdray.slots.job import Worker
from tests.models.tiny_bert import tiny_bert


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_bert()


@dataclass
class FewRows:
    """Rows of different lengths, with the part of the interface of `Rows` that `compute_logits` uses."""

    texts: list[torch.Tensor]
    top_k: int | None = None

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(text) for text in self.texts], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.texts)

    def answers(self, indices: np.ndarray) -> np.ndarray:
        return indices

    def batch(self, indices: np.ndarray, multiple: int = 1) -> Batch:
        ids = torch.nn.utils.rnn.pad_sequence([self.texts[row] for row in indices], batch_first=True)
        inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
        return Batch(inputs, torch.zeros(len(indices), dtype=torch.long), indices)


@pytest.fixture
def rows() -> FewRows:
    random = torch.Generator().manual_seed(0)
    return FewRows([torch.randint(1, 50, (length,), generator=random) for length in (9, 3, 17, 3, 8, 21, 5)])


class Rank(Worker):
    """One rank of a group. The ranks are threads of one process."""

    def all_gather(self, value: Any) -> list[Any]:
        values, barrier = self.cache["group"]
        values[self.rank] = value
        barrier.wait(timeout=60)
        return values


def test_each_row_has_the_logits_of_its_own_text(model, rows):
    alone = torch.cat([model(text[None]).logits for text in rows.texts]).detach().numpy()
    together = compute_logits(model, rows, 3, Worker(), None)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("padding", [True, False])
def test_a_batch_on_a_cpu_has_a_limited_number_of_tokens(padding: bool):
    rows = FewRows([torch.ones(length, dtype=torch.long) for length in [300] * 9 + [20] * 300])
    batches = evaluation_batches(rows, 128, Worker(), padding)
    assert len(batches[0]) == TOKENS_ON_CPU // 300
    assert all(len(batch) * max(rows.lengths[batch]) <= TOKENS_ON_CPU for batch in batches)
    assert sorted(np.concatenate(batches)) == list(range(309))


@pytest.mark.parametrize("world", [2, 6])
def test_logits_do_not_depend_on_the_number_of_ranks(model, rows, world):
    group = ([None] * world, Barrier(world))
    ranks = [Rank(rank, world, cache={"group": group}) for rank in range(world)]
    with ThreadPoolExecutor(world) as threads:
        of_ranks = list(threads.map(lambda rank: compute_logits(model, rows, 2, rank, None), ranks))
    of_one_worker = compute_logits(model, rows, 2, Worker(), None)
    assert all(np.array_equal(logits, of_one_worker) for logits in of_ranks)


def test_the_model_stays_in_its_mode(model, rows):
    model.train()
    first, second = (compute_logits(model, rows, 3, Worker(), None) for _ in range(2))
    assert np.array_equal(first, second)
    assert model.training
    assert model(rows.texts[0][None]).logits.requires_grad


def test_logits_under_autocast_are_close_and_float32(model, rows):
    bf16 = compute_logits(model, rows, 3, Worker(), torch.bfloat16)
    fp32 = compute_logits(model, rows, 3, Worker(), None)
    assert bf16.dtype == np.float32
    assert not np.array_equal(bf16, fp32)
    np.testing.assert_allclose(bf16, fp32, atol=0.2)
