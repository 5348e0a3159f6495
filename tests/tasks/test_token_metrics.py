"""Metrics of language models: equal to torch and to plain counting, and functions of counts of documents."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from kdray.evaluation.formatting import heading
from kdray.evaluation.quality import retention, student_quality
from kdray.evaluation.randomisation import randomisation_test
from kdray.evaluation.statistics import (
    CountMetric,
    bootstrap_difference,
    bootstrap_interval,
    bootstrap_ratio,
    metric_of_counts,
)
from kdray.losses.top_k import TopK, numbers_kept
from kdray.tasks.causal_lm import CausalLM
from kdray.tasks.masked_lm import MaskedLM
from kdray.tasks.task import Outputs
from kdray.tasks.token_metrics import TOKEN_METRICS, count_texts, perplexity, unigram_perplexity

TASK = MaskedLM(block=16)
NAMES = ("perplexity", "loss", "token_accuracy", "top5_accuracy")


@dataclass(frozen=True)
class Documents:
    """The gold of some documents; see `GoldRows`."""

    gold: np.ndarray
    example_starts: np.ndarray
    labels: tuple[str, ...] = ()

    def count_answers(self, indices: np.ndarray) -> tuple[int, int]:
        return len(self.gold), int((self.gold >= 0).sum())

    def __len__(self) -> int:
        return len(self.example_starts) - 1


def documents(
    sizes: Sequence[int], vocabulary: int, seed: int = 0, missing: float = 0.0
) -> tuple[Documents, np.ndarray]:
    """Documents with so many answers, and logits that know the gold a little (A x V)."""
    draw = np.random.default_rng(seed)
    answers = sum(sizes)
    gold_A = draw.integers(vocabulary, size=answers)
    logits_AxV = draw.normal(size=(answers, vocabulary)).astype(np.float32)
    logits_AxV[np.arange(answers), gold_A] += 1
    gold_A = np.where(draw.random(answers) < missing, -1, gold_A)
    return Documents(gold_A, np.concatenate(([0], np.cumsum(sizes)))), logits_AxV


def kept(logits_AxV: np.ndarray, rows: Documents, k: int = 16) -> Outputs:
    return Outputs(TopK.of_logits(torch.from_numpy(logits_AxV), torch.from_numpy(rows.gold), k).rows().numpy())


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 0),
    st.integers(6, 60),
    st.integers(5, 80),
    st.integers(0, 99),
)
@settings(max_examples=40)
def test_metrics_equal_torch_and_plain_counting(sizes: list[int], vocabulary: int, k: int, seed: int) -> None:
    rows, logits_AxV = documents(sizes, vocabulary, seed, missing=0.2)
    values = TASK.values(kept(logits_AxV, rows, k), rows)
    has_gold_A = rows.gold >= 0
    logits, gold = torch.from_numpy(logits_AxV[has_gold_A]).double(), torch.from_numpy(rows.gold[has_gold_A])
    assert tuple(values) == NAMES
    if not len(gold):
        assert values == {"perplexity": 1.0, "loss": 0.0, "token_accuracy": 0.0, "top5_accuracy": 0.0}
        return
    loss = functional.cross_entropy(logits, gold).item()
    ranks = (logits > logits.gather(1, gold[:, None])).sum(dim=1)
    assert values["loss"] == pytest.approx(loss, rel=1e-5)
    assert values["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert values["token_accuracy"] == pytest.approx((ranks == 0).double().mean().item())
    # At most vocabulary - 1 tokens are kept: of six, all but the last one are among the first five.
    assert values["top5_accuracy"] == pytest.approx((ranks < 5).double().mean().item())


@given(st.lists(st.integers(0, 5), min_size=2, max_size=12), st.data())
@settings(max_examples=40)
def test_counts_add_up_over_any_split_of_documents(sizes: list[int], data: st.DataObject) -> None:
    rows, logits_AxV = documents(sizes, 30)
    outputs = kept(logits_AxV, rows).logits_AxC
    counts = count_texts(outputs, rows.gold, rows.example_starts)
    assert counts.shape == (len(sizes), 4)
    assert counts[:, [0]].toarray()[:, 0].tolist() == sizes
    cut = data.draw(st.integers(0, len(sizes)))
    answers = rows.example_starts[cut]
    first = count_texts(outputs[:answers], rows.gold[:answers], rows.example_starts[: cut + 1])
    second = count_texts(outputs[answers:], rows.gold[answers:], rows.example_starts[cut:] - answers)
    assert first.sum(axis=0) + second.sum(axis=0) == pytest.approx(counts.sum(axis=0))


def test_a_vocabulary_smaller_than_k_is_kept_but_for_its_last_token() -> None:
    rows, logits_AxV = documents([4, 3], 4)
    outputs = kept(logits_AxV, rows, k=16)
    assert outputs.logits_AxC.shape[1] == numbers_kept(3)
    loss = functional.cross_entropy(torch.from_numpy(logits_AxV), torch.from_numpy(rows.gold)).item()
    assert TASK.values(outputs, rows)["loss"] == pytest.approx(loss, rel=1e-5)


def test_a_huge_loss_is_finite_and_so_is_everything_that_is_computed_from_it() -> None:
    rows, logits_AxV = documents([3] * 30, 20)
    bad_AxV = logits_AxV.copy()
    bad_AxV[np.arange(90), rows.gold] = -1e35
    good, bad = (kept(each, rows) for each in (logits_AxV, bad_AxV))
    values = TASK.values(bad, rows)
    assert values["loss"] > 1e29
    assert values["perplexity"] == pytest.approx(math.exp(80))
    first, second = (metric_of_counts("perplexity", [TASK.counts(each, rows)]) for each in (good, bad))
    for interval in (
        bootstrap_interval(second, resamples=200),
        bootstrap_difference(first, second, resamples=200),
        bootstrap_ratio(first, second, resamples=200),
    ):
        assert np.isfinite([interval.low, interval.estimate, interval.high]).all()
    assert randomisation_test(first, second, shuffles=200).p < 0.01


def test_outputs_that_are_no_numbers_have_no_metrics() -> None:
    rows, logits_AxV = documents([4, 3], 30)
    outputs = kept(logits_AxV, rows).logits_AxC
    outputs[2] = np.nan
    assert all(math.isnan(value) for value in TASK.values(Outputs(outputs), rows).values())


def test_the_quality_of_a_student_against_its_teacher() -> None:
    rows, logits_AxV = documents([5, 7, 4], 40, missing=0.1)
    teacher, student = kept(logits_AxV, rows), kept(0.3 * logits_AxV, rows)
    figures = student_quality(TASK, student, teacher, rows)
    values, teacher_values = TASK.values(student, rows), TASK.values(teacher, rows)
    assert values["perplexity"] > teacher_values["perplexity"]
    assert figures["retention"] == pytest.approx(teacher_values["perplexity"] / values["perplexity"])
    assert figures["retention"] < 1
    assert figures["loss"] == pytest.approx(values["loss"], rel=1e-6)
    # Another temperature changes no order.
    assert figures["agreement"] == 1
    other, _ = documents([5, 7, 4], 40)
    random = kept(documents([5, 7, 4], 40, seed=9)[1], other)
    first = [outputs.logits_AxC[:, 16] for outputs in (random, teacher)]
    assert TASK.agreement(random, teacher) == np.mean(first[0] == first[1]) < 0.5


@pytest.mark.parametrize(("student", "teacher", "expected"), [(20, 10, 0.5), (10, 20, 2.0), (1.0, 1.0, 1.0)])
def test_retention_is_the_perplexity_of_the_teacher_over_that_of_the_student(
    student: float, teacher: float, expected: float
) -> None:
    assert retention(TASK.quality, student, teacher) == expected


def test_the_loss_of_other_tasks_keeps_its_name() -> None:
    assert heading("loss") == "loss"


# Chance


def test_chance_is_near_the_perplexity_of_the_frequencies_that_the_tokens_come_from() -> None:
    shares = 1 / np.arange(1, 2001)
    shares /= shares.sum()
    expected = math.exp(-(shares * np.log(shares)).sum())
    draw = np.random.default_rng(0)
    for tokens, tolerance in ((500, 0.35), (5_000, 0.1), (200_000, 0.02)):
        gold = draw.choice(2000, tokens, p=shares)
        assert unigram_perplexity(gold) == pytest.approx(expected, rel=tolerance)
        found = np.unique(gold, return_counts=True)[1] / tokens
        plain = math.exp(-(found * np.log(found)).sum())
        # The entropy of the frequencies themselves is too small, above all that of few tokens.
        assert plain < unigram_perplexity(gold)


@pytest.mark.parametrize(
    ("gold", "expected"),
    [([], 1.0), ([-1, -1], 1.0), ([7], 1.0), ([7] * 50, 1.0), ([*range(8)] * 200, 8.0)],
    ids=["none", "no gold", "one", "one often", "eight"],
)
def test_chance_of_simple_texts(gold: list[int], expected: float) -> None:
    assert unigram_perplexity(np.array(gold, np.int64)) == pytest.approx(expected, rel=1e-6)


def test_chance_of_different_tokens_alone_is_more_than_their_number() -> None:
    assert unigram_perplexity(np.arange(20)) > 100


@pytest.mark.parametrize("task", [MaskedLM(), CausalLM()], ids=["masked", "causal"])
def test_a_teacher_must_be_better_than_chance(task: MaskedLM | CausalLM) -> None:
    rows, _ = documents([200], 10)
    chance = task.chance(rows)
    assert chance == pytest.approx(10, rel=0.05)
    required = task.required_quality(chance, 0.05)
    assert required == pytest.approx(0.95 * chance)
    assert task.quality.is_as_good(required - 1, required)
    assert not task.quality.is_as_good(chance, required)
    assert not task.quality.is_as_good(math.nan, required)


# The bootstrap draws documents


def test_perplexity_is_drawn_by_document_and_is_no_mean_of_perplexities() -> None:
    rows, logits_AxV = documents([1, 40], 30)
    metric = metric_of_counts("perplexity", [TASK.counts(kept(logits_AxV, rows), rows)])
    weights_RxN = np.array([[1, 1], [2, 0], [0, 2]])
    loss_A = functional.cross_entropy(
        torch.from_numpy(logits_AxV), torch.from_numpy(rows.gold), reduction="none"
    ).numpy()
    expected = [math.exp(part.mean()) for part in (loss_A, loss_A[:1], loss_A[1:])]
    assert metric.values(weights_RxN)[:, 0] == pytest.approx(expected, rel=1e-5)


def test_a_better_model_has_a_difference_below_zero_and_a_ratio_below_one() -> None:
    rows, logits_AxV = documents([5] * 200, 30)
    student, teacher = (
        CountMetric((TASK.counts(kept(scale * logits_AxV, rows), rows).counts_NxK,), TOKEN_METRICS["perplexity"])
        for scale in (0.3, 1.0)
    )
    difference = bootstrap_difference(teacher, student, resamples=400)
    assert difference.high < 0
    kept_share = bootstrap_ratio(teacher, student, resamples=400)
    assert kept_share.low < kept_share.estimate < kept_share.high < 1
    assert randomisation_test(teacher, student, shuffles=400).p < 0.01
    assert randomisation_test(teacher, teacher, shuffles=400).p == 1


def test_perplexity_of_a_uniform_model_is_the_size_of_the_vocabulary() -> None:
    rows, logits_AxV = documents([9], 37)
    outputs = kept(np.zeros_like(logits_AxV), rows)
    assert TASK.values(outputs, rows)["perplexity"] == pytest.approx(37, rel=1e-5)
    assert perplexity(np.array([[2, 2 * math.log(37), 0, 0]])) == pytest.approx([37])
