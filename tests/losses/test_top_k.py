"""The outputs over a vocabulary as the k most probable tokens, the rest and the gold, and the loss of k + 1 classes.

Shapes: A answers, V tokens of the vocabulary.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from kdray.errors import SpecError
from kdray.losses.distillation import Distillation, Targets
from kdray.losses.softmax import SOFTMAX
from kdray.losses.top_k import KNOTS, LARGEST_VOCABULARY, SMALLEST_LOG, TopK, logs_only, numbers_kept
from kdray.losses.vocabulary import VOCABULARY
from tests.losses.comparing import soft_loss, term_named

A, V, K = 6, 40, 5
LOGITS = arrays(np.float32, (A, V), elements=st.floats(-12, 12, width=32))
NONE = torch.full((A,), -1)
AT_KNOTS = [1 / knot for knot in KNOTS if knot]
DIVERGENCES = ("kl", "reverse_kl", "jsd", "tvd")


def random_logits(seed: int, spread: float = 2.0, size: int = V) -> Tensor:
    return spread * torch.randn(A, size, generator=torch.Generator().manual_seed(seed))


def kept(logits: Tensor, k: int = K, gold: Tensor = NONE) -> Tensor:
    return TopK.of_logits(logits, gold, k).rows()


def reference(student: Tensor, teacher: Tensor, k: int, temperature: float) -> Tensor:
    """T² KL of the teacher's k most probable tokens and all others together, from all logits, in float64 (A)."""
    ids = teacher.topk(k, dim=-1).indices
    student_AxV, teacher_AxV = ((each.double() / temperature).softmax(dim=-1) for each in (student, teacher))

    def classes(probabilities: Tensor) -> Tensor:
        first = probabilities.gather(-1, ids)
        return torch.cat([first, probabilities.scatter(-1, ids, 0.0).sum(dim=-1, keepdim=True)], dim=-1)

    p, q = classes(teacher_AxV), classes(student_AxV)
    return temperature**2 * (p * (p / q).log()).sum(dim=-1)


# What is kept ---------------------------------------------------------------------------------------------------------


@given(LOGITS, st.integers(1, V + 3))
def test_rows_have_all_that_was_kept(logits: np.ndarray, k: int) -> None:
    gold = torch.tensor([3, -1, 0, V - 1, -1, 7])
    first = TopK.of_logits(torch.from_numpy(logits), gold, k)
    rows = first.rows()
    assert rows.shape == (A, numbers_kept(min(k, V - 1)))
    assert rows.dtype == torch.float32
    second = TopK.of_rows(rows)
    for one, other in ((getattr(each, name) for each in (first, second)) for name in vars(first)):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    logs = torch.from_numpy(logits).double().log_softmax(dim=-1)
    torch.testing.assert_close(first.logs_AxK.double(), logs.gather(-1, first.ids_AxK), atol=1e-5, rtol=1e-5)
    assert (first.logs_AxK.diff(dim=-1) <= 0).all()
    expected = torch.where(gold >= 0, logs.gather(-1, gold.clamp(min=0)[:, None])[:, 0], 0.0)
    torch.testing.assert_close(first.gold_A.double(), expected, atol=1e-5, rtol=1e-5)


@given(LOGITS, st.integers(1, V - 1))
def test_the_kept_tokens_and_the_rest_are_everything(logits: np.ndarray, k: int) -> None:
    top = TopK.of_logits(torch.from_numpy(logits), NONE, k)
    torch.testing.assert_close(top.captured + top.rest_AxT[:, KNOTS.index(1.0)].exp(), torch.ones(A))


def test_token_ids_are_exact_in_the_largest_vocabulary() -> None:
    logits = torch.zeros(1, LARGEST_VOCABULARY, dtype=torch.bfloat16)
    places = torch.tensor([LARGEST_VOCABULARY - 1, LARGEST_VOCABULARY - 2, 2**23 + 1])
    logits[0, places] = torch.tensor([9.0, 8.0, 7.0], dtype=torch.bfloat16)
    assert torch.equal(TopK.of_rows(kept(logits, 3, NONE[:1])).ids_AxK[0], places)


def test_a_larger_vocabulary_is_refused() -> None:
    logits = torch.zeros(1, 1).expand(1, LARGEST_VOCABULARY + 1)
    with pytest.raises(SpecError, match=r"the vocabulary of the model has 16,777,217 tokens, .* at most 16,777,216"):
        TopK.of_logits(logits, NONE[:1], 5)


def test_logarithms_are_compared_without_the_order_of_equal_tokens() -> None:
    rows = kept(random_logits(0))
    other = TopK.of_rows(rows.clone())
    other.ids_AxK[:] = other.ids_AxK.flip(-1)
    assert np.array_equal(logs_only(rows.numpy()), logs_only(other.rows().numpy()))
    assert logs_only(rows.numpy()).shape == (A, numbers_kept(K) - K)


# The rest at any temperature ------------------------------------------------------------------------------------------


def zipf(seed: int) -> Tensor:
    """Logits with the long tail of words: p ~ 1 / rank, with noise."""
    return -torch.arange(1, 5001).log() + random_logits(seed, 0.7, 5000)


def rest_share(logits: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """The probability of the rest at this temperature (A): as it is kept, and as it is."""
    top = TopK.of_logits(logits, NONE, k)
    scaled = (logits.double() / temperature).softmax(dim=-1)
    return top.outcomes(temperature).probabilities[:, -1].double(), 1 - scaled.gather(-1, top.ids_AxK).sum(dim=-1)


@pytest.mark.parametrize("temperature", AT_KNOTS)
def test_the_rest_is_exact_at_the_knots(temperature: float) -> None:
    for logits in (random_logits(1, 4.0), zipf(1)):
        torch.testing.assert_close(*rest_share(logits, K, temperature), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("temperature", "largest"),
    [(0.3, 0.03), (0.6, 0.05), (0.8, 0.04), (1.2, 0.02), (1.4, 0.02), (1.7, 0.01), (2.5, 2e-3), (3, 2e-3), (6, 5e-4)],
)
def test_the_rest_is_close_between_the_knots(temperature: float, largest: float) -> None:
    for logits in (random_logits(2, 4.0, 5000), random_logits(3, 2.0, 5000), zipf(4)):
        stored, true = rest_share(logits, 16, temperature)
        assert (stored - true).abs().max() < largest


def test_far_below_a_temperature_of_1_the_rest_is_small() -> None:
    stored, true = rest_share(random_logits(5, 4.0), K, 0.05)
    assert (stored <= true + 1e-6).all()
    assert true.max() < 0.1


@given(LOGITS, st.floats(0.02, 50))
def test_the_rest_is_within_the_limits_of_a_convex_function(logits: np.ndarray, temperature: float) -> None:
    """It is at most what its largest token would give for each of its tokens, at least what that token gives alone."""
    top = TopK.of_logits(torch.from_numpy(logits), NONE, K)
    outcomes = top.outcomes(temperature)
    assert torch.isfinite(outcomes.logs).all()
    torch.testing.assert_close(outcomes.probabilities.sum(dim=-1), torch.ones(A))
    largest_A = outcomes.probabilities[:, K - 1]
    # Below 1e-37, float32 has few digits left.
    assert (outcomes.probabilities[:, -1] <= (V - K) * largest_A * 1.001 + 1e-37).all()


# The loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", DIVERGENCES)
@given(st.integers(0, 1000), st.floats(0.5, 16))
def test_with_all_tokens_kept_it_is_the_dense_loss(soft: str, seed: int, temperature: float) -> None:
    student, teacher = random_logits(seed), random_logits(seed + 1)
    dense = soft_loss(SOFTMAX, student, teacher, temperature, term_named(soft))
    sparse = soft_loss(VOCABULARY, student, kept(teacher, V), temperature, term_named(soft))
    torch.testing.assert_close(sparse, dense, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("temperature", AT_KNOTS)
@pytest.mark.parametrize("k", [1, 5, 20])
def test_at_the_knots_it_is_the_divergence_of_the_classes(temperature: float, k: int) -> None:
    student, teacher = random_logits(7), random_logits(8)
    loss = soft_loss(VOCABULARY, student, kept(teacher, k), temperature)
    torch.testing.assert_close(loss.double(), reference(student, teacher, k, temperature), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.7, 1.3, 1.5, 1.8, 2.5, 3.0, 6.0])
def test_between_the_knots_it_is_close_to_that(temperature: float) -> None:
    student, teacher = random_logits(9, 1.0, 2000), zipf(9)[:, :2000]
    loss = soft_loss(VOCABULARY, student, kept(teacher, 16), temperature)
    torch.testing.assert_close(loss.double(), reference(student, teacher, 16, temperature), atol=5e-3, rtol=2e-2)


@pytest.mark.parametrize("soft", DIVERGENCES)
@pytest.mark.parametrize("temperature", AT_KNOTS)
def test_a_student_that_equals_its_teacher_has_no_loss(soft: str, temperature: float) -> None:
    logits = random_logits(10, 3.0).requires_grad_()
    loss = soft_loss(VOCABULARY, logits, kept(logits.detach()), temperature, term_named(soft))
    assert loss.abs().max() < 1e-4 * temperature**2
    if soft != "tvd":  # its slope at 0 is that of |x|
        loss.sum().backward()
        assert logits.grad is not None
        assert logits.grad.abs().max() < 1e-4 * temperature


@pytest.mark.parametrize("soft", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.7])
def test_the_gradient_is_that_of_differences(soft: str, temperature: float) -> None:
    student, teacher = random_logits(11, 1.0, 12).double()[:3], kept(random_logits(12, 1.0, 12), 4).double()[:3]

    def loss(logits: Tensor) -> Tensor:
        return soft_loss(VOCABULARY, logits, teacher, temperature, term_named(soft))

    assert torch.autograd.gradcheck(loss, student.requires_grad_())


def one_token(height: float) -> Callable[[], Tensor]:
    return lambda: torch.nn.functional.one_hot(torch.arange(A), V).float() * height


EXTREME: dict[str, Callable[[], Tensor]] = {
    "one token": one_token(1e4),
    "one token, far": one_token(1e30),
    "one token never": one_token(-1e4),
    "equal": lambda: torch.zeros(A, V),
    "large and equal": lambda: torch.full((A, V), 3e4),
}


@pytest.mark.parametrize("soft", DIVERGENCES)
@pytest.mark.parametrize("student", EXTREME)
@pytest.mark.parametrize("teacher", EXTREME)
def test_extreme_logits_have_a_finite_loss_and_gradient(soft: str, student: str, teacher: str) -> None:
    gold = torch.tensor([0, 5, -1, 3, 7, -1])
    for temperature in (0.1, 1.0, 3.0, 20.0):
        logits = EXTREME[student]().roll(1, dims=0).requires_grad_()
        targets = Targets(gold, kept(EXTREME[teacher](), gold=gold))
        loss = Distillation(soft=soft, temperature=temperature, trust=0.5).loss(logits, targets, VOCABULARY)
        loss.total.backward()
        assert logits.grad is not None
        assert torch.isfinite(loss.total_A).all()
        assert torch.isfinite(logits.grad).all()


def test_a_token_that_a_teacher_never_gives_is_kept_as_a_finite_number() -> None:
    logits = random_logits(13)
    logits[:, 3:] = -torch.inf
    rows = kept(logits, gold=torch.full((A,), 4))
    assert torch.isfinite(rows).all()
    assert (TopK.of_rows(rows).gold_A == SMALLEST_LOG).all()
    assert torch.isfinite(soft_loss(VOCABULARY, random_logits(14), rows, 3.0)).all()


def test_bf16_logits_have_about_the_same_loss() -> None:
    student, teacher = random_logits(15), random_logits(16)
    targets = [Targets(torch.arange(A), kept(each)) for each in (teacher, teacher.bfloat16())]
    exact = Distillation().loss(student, targets[0], VOCABULARY).total_A
    rounded = Distillation().loss(student.bfloat16(), targets[1], VOCABULARY).total_A
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.02)


def test_the_other_answers_of_a_batch_change_nothing() -> None:
    student, teacher, gold = random_logits(17), kept(random_logits(18)), torch.tensor([1, -1, 2, 3, -1, 4])
    settings = Distillation(alpha=0.4, trust=0.3)
    whole = settings.loss(student, Targets(gold, teacher), VOCABULARY).total_A
    order = torch.tensor([4, 0, 2])
    part = settings.loss(student[order], Targets(gold[order], teacher[order]), VOCABULARY).total_A
    torch.testing.assert_close(part, whole[order])
    assert len(settings.loss(student[:0], Targets(gold[:0], teacher[:0]), VOCABULARY).total_A) == 0


def test_an_answer_without_gold_has_the_soft_term_alone() -> None:
    student, teacher = random_logits(19), kept(random_logits(20))
    loss = Distillation(alpha=0.4, trust=0.0).loss(student, Targets(NONE, teacher), VOCABULARY)
    torch.testing.assert_close(loss.total_A, 0.4 * soft_loss(VOCABULARY, student, teacher, 2.0))


def test_trust_moves_the_weight_of_a_wrong_teacher_to_the_gold() -> None:
    student, teacher = random_logits(21), random_logits(22)
    gold = teacher.argmax(dim=-1)
    gold[::2] = (gold[::2] + 1) % V
    soft, hard = soft_loss(VOCABULARY, student, kept(teacher), 2.0), VOCABULARY.hard_loss(student, gold)
    loss = Distillation(alpha=0.6, trust=0.25).loss(student, Targets(gold, kept(teacher)), VOCABULARY).total_A
    is_wrong = torch.arange(A) % 2 == 0
    weight = torch.where(is_wrong, 0.6 * 0.25, torch.tensor(0.6))
    torch.testing.assert_close(loss, weight * soft + (1 - weight) * hard)
    torch.testing.assert_close(VOCABULARY.contradicts(kept(teacher), gold)[:, 0], is_wrong)


def test_a_schedule_has_the_loss_of_its_time() -> None:
    settings = Distillation(alpha=0.9, alpha_end=0.1, temperature=4.0, temperature_end=2.0, schedule="linear")
    student, teacher, gold = random_logits(23), kept(random_logits(24)), torch.arange(A)
    now = settings.loss(student, Targets(gold, teacher, progress=1.0), VOCABULARY).total_A
    fixed = Distillation(alpha=0.1, temperature=2.0).loss(student, Targets(gold, teacher), VOCABULARY).total_A
    torch.testing.assert_close(now, fixed)


def test_a_live_teacher_need_not_answer_while_no_term_reads_it() -> None:
    later = Distillation(alpha=0.0, alpha_end=0.5, schedule="linear")
    loss = later.loss(random_logits(25), Targets(torch.arange(A), is_live=True), VOCABULARY)
    assert set(loss.terms) == {"hard"}
    with pytest.raises(SpecError, match="need the teacher's logits"):
        later.loss(random_logits(25), Targets(torch.arange(A), progress=0.5, is_live=True), VOCABULARY)


def test_kept_rows_of_a_student_have_its_hard_loss() -> None:
    student, gold = random_logits(26), torch.tensor([1, -1, 2, 3, -1, 4])
    expected = VOCABULARY.hard_loss(student, gold)
    torch.testing.assert_close(VOCABULARY.for_data_units().hard_loss(kept(student, gold=gold), gold), expected)
