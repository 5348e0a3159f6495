"""`distillation.trust`: what the loss of a student is where the teacher contradicts the gold.

Shapes: A answers, C outputs.
"""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdray.choice.reruns import Rerun
from kdray.errors import SpecError
from kdray.losses.distillation import Distillation, Loss, Targets
from kdray.losses.distribution import Distribution
from kdray.losses.sigmoid import Sigmoid
from kdray.losses.softmax import SOFTMAX
from kdray.losses.value import Value
from kdray.settings import identifying_values
from kdray.training.trial import Recipe
from tests.losses.comparing import soft_loss

A, C = 5, 3
LOGITS = arrays(np.float64, (A, C), elements=st.floats(-8, 8))
SHARES = st.floats(0, 1)
SIGMOID = Sigmoid()

CLASSES = torch.tensor([0, 1, 2, 0, -1])
"""The last answer has no gold, as a row without a label."""
LABELS = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [-1, -1, -1]])
NUMBERS = torch.tensor([0.5, -1.0, 2.0, 0.0, float("nan")])
KINDS = {"softmax": (SOFTMAX, CLASSES), "sigmoid": (SIGMOID, LABELS)}
GOLD_WEIGHT = 1.25
"""Five answers, of which four have gold."""


def loss_of(settings: Distillation, student: Any, teacher: Any, gold: torch.Tensor, distribution: Distribution) -> Loss:
    student_AxC, teacher_AxC = (torch.as_tensor(logits, dtype=torch.float32) for logits in (student, teacher))
    return settings.loss(student_AxC, Targets(gold, teacher_AxC, GOLD_WEIGHT), distribution)


def right_teacher(gold: torch.Tensor) -> torch.Tensor:
    """Logits of a teacher that contradicts no gold."""
    if gold.ndim == 1:
        return torch.nn.functional.one_hot(gold.clamp(min=0), C) * 3.0
    return (gold == 1) * 4.0 - 2.0


def random_logits(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    student, teacher = torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (2, A, C)).astype(np.float32))
    return student, teacher


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> tuple[Distribution, torch.Tensor]:
    return KINDS[request.param]


def test_a_class_is_contradicted_by_another_one_and_a_label_by_the_other_side_of_one_half() -> None:
    teacher = torch.tensor([[2.0, 1.0, -1.0], [2.0, 1.0, -1.0], [-2.0, -1.0, 1.0], [0.0, 3.0, 0.1], [9.0, -9.0, 9.0]])
    assert SOFTMAX.contradicts(teacher, CLASSES).tolist() == [[False], [True], [False], [True], [False]]
    assert SIGMOID.contradicts(teacher, LABELS).tolist() == [
        [False, True, True],
        [True, True, False],
        [True, True, False],
        [False, False, True],
        [False, False, False],
    ]


@pytest.mark.parametrize("trust", [0.0, 0.3])
@pytest.mark.parametrize(("alpha", "mse"), [(0.6, 0.2), (1.0, 0.0), (0.0, 0.2)])
def test_the_loss_of_each_answer(
    kind: tuple[Distribution, torch.Tensor], trust: float, alpha: float, mse: float
) -> None:
    """Computed one answer, or one label of an answer, at a time."""
    distribution, gold = kind
    student, teacher = random_logits(0)
    settings = Distillation(temperature=2.0, alpha=alpha, logit_mse=mse, trust=trust)
    loss = loss_of(settings, student, teacher, gold, distribution)
    expected = torch.zeros(A)
    for answer in range(A):
        decisions = [slice(None)] if gold.ndim == 1 else [slice(label, label + 1) for label in range(C)]
        for decision in decisions:
            part = [logits[answer : answer + 1, decision] for logits in (student, teacher)]
            own_gold = gold[answer : answer + 1] if gold.ndim == 1 else gold[answer : answer + 1, decision]
            own_trust = trust if distribution.contradicts(part[1], own_gold).item() else 1.0
            hard = distribution.hard_loss(part[0], own_gold)
            value = alpha * own_trust * soft_loss(distribution, *part, 2.0)
            value += ((1 - alpha) * GOLD_WEIGHT + alpha * (1 - own_trust)) * hard
            value += mse * own_trust * (part[0] - part[1]).square().mean()
            expected[answer] += value.item() / len(decisions)
    torch.testing.assert_close(loss.total_A, expected)
    torch.testing.assert_close(sum(loss.terms.values()), loss.total_A.sum())


@given(st.sampled_from(list(KINDS)), LOGITS, LOGITS, SHARES, SHARES, st.floats(0, 4))
def test_the_loss_is_linear_in_trust(
    name: str, student: np.ndarray, teacher: np.ndarray, trust: float, alpha: float, mse: float
) -> None:
    distribution, gold = KINDS[name]
    total, none, full = (
        loss_of(Distillation(alpha=alpha, logit_mse=mse, trust=share), student, teacher, gold, distribution).total_A
        for share in (trust, 0.0, 1.0)
    )
    torch.testing.assert_close(total, trust * full + (1 - trust) * none, atol=1e-3, rtol=1e-4)


@given(st.sampled_from(list(KINDS)), LOGITS, SHARES, SHARES)
def test_a_teacher_without_mistakes_is_trusted_to_the_last_bit(
    name: str, student: np.ndarray, trust: float, alpha: float
) -> None:
    distribution, gold = KINDS[name]
    losses = [
        loss_of(Distillation(alpha=alpha, logit_mse=0.1, trust=share), student, right_teacher(gold), gold, distribution)
        for share in (trust, 1.0)
    ]
    assert torch.equal(losses[0].total_A, losses[1].total_A)


def test_without_trust_a_mistake_has_no_effect_and_the_other_answers_keep_their_loss(
    kind: tuple[Distribution, torch.Tensor],
) -> None:
    distribution, gold = kind
    settings = Distillation(alpha=0.6, logit_mse=0.2, trust=0.0)
    student, _ = random_logits(1)
    totals, gradients = [], []
    for size in (1.0, 7.0):
        teacher = right_teacher(gold)
        teacher[1] = -size * teacher[1].abs() if gold.ndim == 2 else torch.tensor([size, 0.0, size / 2])
        teacher[1, 0] = size  # wrong by much or by little
        leaf = student.clone().requires_grad_()
        loss = loss_of(settings, leaf, teacher, gold, distribution)
        loss.total_A.sum().backward()
        totals.append(loss.total_A.detach())
        gradients.append(leaf.grad)
    contradicted = distribution.contradicts(teacher, gold)[1]
    assert contradicted[0]
    assert torch.equal(totals[0][[0, 2, 3, 4]], totals[1][[0, 2, 3, 4]])
    where = (1, contradicted.expand(C))
    torch.testing.assert_close(gradients[0][where], gradients[1][where], atol=0, rtol=0)
    hard = loss_of(Distillation(alpha=0.0), student, teacher, gold, distribution)
    if gold.ndim == 1:
        # 0.6 from the soft term, and 0.4 as every answer with gold has it.
        torch.testing.assert_close(totals[0][1], hard.total_A[1] / GOLD_WEIGHT * (0.6 + 0.4 * GOLD_WEIGHT))


def test_with_alpha_1_and_no_trust_each_answer_is_learnt_from_the_teacher_or_from_its_label() -> None:
    """Conditional teacher-student learning (Meng et al. 2019)."""
    student, teacher = random_logits(2)
    loss = loss_of(Distillation(temperature=3.0, alpha=1.0, trust=0.0), student, teacher, CLASSES, SOFTMAX)
    is_wrong_A = SOFTMAX.contradicts(teacher, CLASSES)[:, 0]
    assert 0 < is_wrong_A.sum() < A - 1
    expected = torch.where(is_wrong_A, SOFTMAX.hard_loss(student, CLASSES), soft_loss(SOFTMAX, student, teacher, 3.0))
    torch.testing.assert_close(loss.total_A, expected)


@given(st.sampled_from(list(KINDS)), LOGITS, LOGITS, SHARES)
def test_answers_without_gold_learn_from_the_teacher_alone(
    name: str, student: np.ndarray, teacher: np.ndarray, trust: float
) -> None:
    distribution, gold = KINDS[name]
    no_gold = torch.full_like(gold, -1)
    loss, full = (
        loss_of(Distillation(alpha=0.7, logit_mse=0.3, trust=share), student, teacher, no_gold, distribution)
        for share in (trust, 1.0)
    )
    assert torch.equal(loss.total_A, full.total_A)
    assert loss.terms["hard"] == 0


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_a_number_is_never_simply_wrong(alpha: float) -> None:
    student, teacher = (logits[:, :1] for logits in random_logits(3))
    losses = [
        loss_of(Distillation(alpha=alpha, trust=trust), student, teacher, NUMBERS, Value(0.5, 2.0))
        for trust in (0.0, 1.0)
    ]
    assert torch.equal(losses[0].total_A, losses[1].total_A)
    assert "trust" not in Value.settings
    assert all("trust" in distribution.settings for distribution, _ in KINDS.values())


@pytest.mark.parametrize("trust", [-0.1, 1.1, float("nan")])
def test_values_outside_the_limits_are_refused(trust: float) -> None:
    with pytest.raises(SpecError, match=r"Distillation\.trust: got"):
        Distillation(trust=trust)


def test_full_trust_is_not_written_so_what_was_trained_before_this_setting_keeps_its_key() -> None:
    """The keys are those of version 0.1."""
    assert identifying_values(Distillation(trust=1)) == {"temperature": 2.0, "alpha": 0.5, "logit_mse": 0.0}
    tuned = Recipe().with_dotted(
        {"distillation.alpha": 0.7, "distillation.temperature": 4.0, "distillation.logit_mse": 0.1}
    )
    for recipe, key in ((Recipe(), "80d2d4512fa129b2"), (tuned, "28899ccdc6fd673b")):
        assert Rerun(trial=0, role="candidate", seed=1, recipe=recipe).key == key
        trusting = recipe.with_dotted({"distillation.trust": 1.0})
        assert Rerun(trial=0, role="candidate", seed=1, recipe=trusting).key == key


def test_less_trust_is_written_and_read_back() -> None:
    settings = Distillation(alpha=0.7, trust=0.25)
    assert identifying_values(settings)["trust"] == 0.25
    assert Distillation(**identifying_values(settings)) == settings
    assert Distillation(**identifying_values(Distillation())).trust == 1
    assert Recipe().with_dotted({"distillation.trust": 0.25}).distillation.trust == 0.25


def test_a_control_with_labels_only_is_the_same_training_whatever_the_trust_is() -> None:
    keys = set()
    for trust in (0.0, 0.3, 1.0):
        distillation = Distillation(temperature=4.0, alpha=0.7, logit_mse=0.1, trust=trust).labels_only()
        keys.add(Rerun(trial=0, role="labels only", seed=1, recipe=Recipe(distillation=distillation)).key)
    assert keys == {"dfe014eab5eba9e3"}  # as in version 0.1
