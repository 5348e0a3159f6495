"""The terms for independent labels compared with a reference in numpy, and their properties for any logits.

Shapes: A answers, C labels.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from kdray.losses.distillation import Distillation, Targets
from kdray.losses.sigmoid import Sigmoid
from tests.losses.comparing import soft_loss

SIGMOID = Sigmoid()
A, C = 5, 3
LOGITS = arrays(np.float64, (A, C), elements=st.floats(-8, 8))
GOLD = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]])
TEMPERATURES = st.floats(0.25, 16)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def reference(student: np.ndarray, teacher: np.ndarray, gold: np.ndarray, temperature: float) -> tuple[np.ndarray, ...]:
    """The soft term, the hard term and the mean squared difference of each answer."""
    teacher_T, student_T = sigmoid(teacher / temperature), sigmoid(student / temperature)
    divergence = teacher_T * np.log(teacher_T / student_T) + (1 - teacher_T) * np.log((1 - teacher_T) / (1 - student_T))
    probability = sigmoid(student)
    hard = -np.where(gold == 1, np.log(probability), np.log(1 - probability))
    return temperature**2 * divergence.mean(axis=1), hard.mean(axis=1), ((student - teacher) ** 2).mean(axis=1)


@pytest.mark.parametrize(("temperature", "alpha", "mse"), [(1, 0.5, 0), (4, 0.9, 0.3), (2, 1, 0), (0.5, 0, 2)])
def test_the_loss_equals_the_reference(temperature: float, alpha: float, mse: float) -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(0, 3, (2, A, C))
    settings = Distillation(temperature=temperature, alpha=alpha, logit_mse=mse)
    loss = settings.loss(torch.from_numpy(student), Targets(GOLD, torch.from_numpy(teacher)), SIGMOID)
    soft, hard, difference = reference(student, teacher, GOLD.numpy(), temperature)
    np.testing.assert_allclose(loss.total_A, alpha * soft + (1 - alpha) * hard + mse * difference, rtol=1e-4)
    torch.testing.assert_close(sum(loss.terms.values()), loss.total_A.sum())


@given(LOGITS, LOGITS, TEMPERATURES)
def test_the_gradient_of_the_soft_term_is_t_times_the_difference_of_probabilities(
    student: np.ndarray, teacher: np.ndarray, temperature: float
) -> None:
    """As for the softmax, so its size is similar for all temperatures; here it is a mean over the labels."""
    student_AxC, teacher_AxC = torch.from_numpy(student).requires_grad_(), torch.from_numpy(teacher)
    soft_loss(SIGMOID, student_AxC, teacher_AxC, temperature).sum().backward()
    difference = (student_AxC / temperature).sigmoid() - (teacher_AxC / temperature).sigmoid()
    torch.testing.assert_close(student_AxC.grad, temperature * difference.detach() / C, atol=1e-9, rtol=1e-9)


def test_at_a_high_temperature_the_gradient_is_a_quarter_of_the_difference_of_logits() -> None:
    student, teacher = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (2, A, C)))
    student.requires_grad_()
    soft_loss(SIGMOID, student, teacher, 1e4).sum().backward()
    torch.testing.assert_close(student.grad, (student - teacher).detach() / 4 / C, atol=1e-4, rtol=1e-3)


@given(LOGITS, LOGITS, TEMPERATURES)
def test_the_soft_term_is_zero_for_equal_models_and_never_negative(
    student: np.ndarray, teacher: np.ndarray, temperature: float
) -> None:
    student_AxC, teacher_AxC = torch.from_numpy(student), torch.from_numpy(teacher)
    assert soft_loss(SIGMOID, student_AxC, student_AxC, temperature).abs().max() < 1e-12
    assert soft_loss(SIGMOID, student_AxC, teacher_AxC, temperature).min() > -1e-9


@given(LOGITS, LOGITS, st.permutations(range(C)), TEMPERATURES)
def test_the_order_of_labels_does_not_matter(
    student: np.ndarray, teacher: np.ndarray, order: list[int], temperature: float
) -> None:
    student_AxC, teacher_AxC = torch.from_numpy(student), torch.from_numpy(teacher)
    torch.testing.assert_close(
        soft_loss(SIGMOID, student_AxC[:, order], teacher_AxC[:, order], temperature),
        soft_loss(SIGMOID, student_AxC, teacher_AxC, temperature),
    )
    torch.testing.assert_close(
        SIGMOID.hard_loss(student_AxC[:, order], GOLD[:, order]), SIGMOID.hard_loss(student_AxC, GOLD)
    )


def test_answers_without_gold_have_a_hard_term_of_zero_and_no_gradient_of_it() -> None:
    student = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (A, C))).requires_grad_()
    gold = GOLD.clone()
    gold[[1, 3]] = -1
    hard_A = SIGMOID.hard_loss(student, gold)
    known = [0, 2, 4]
    torch.testing.assert_close(hard_A[known], SIGMOID.hard_loss(student[known], GOLD[known]))
    assert hard_A[[1, 3]].tolist() == [0, 0]
    hard_A.sum().backward()
    assert student.grad is not None
    assert student.grad[[1, 3]].abs().max() == 0
    assert student.grad[known].abs().min() > 0


def test_extreme_logits_stay_finite_and_keep_their_size() -> None:
    """A label that the teacher is sure of, and the student sure of the opposite: the term grows with the logit."""
    student, teacher = torch.tensor([[200.0]]), torch.tensor([[-200.0]])
    assert soft_loss(SIGMOID, student, teacher, 1.0).item() == pytest.approx(200)
    assert SIGMOID.hard_loss(student, torch.tensor([[0]])).item() == pytest.approx(200)
    assert torch.isfinite(soft_loss(SIGMOID, 100 * student, 100 * teacher, 0.1)).all()


LABELS = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [-1, -1, -1]])


def test_a_new_head_begins_with_the_share_of_each_label() -> None:
    head = nn.Linear(4, 3)
    nn.init.zeros_(head.bias)
    Sigmoid.of(LABELS).start_training(nn.Sequential(nn.Linear(4, 4), head))
    # One row is added with each label, and one without it; the row without gold does not count.
    torch.testing.assert_close(head.bias.detach().sigmoid(), torch.tensor([2 / 5, 1 / 5, 4 / 5]))


def test_a_trained_head_and_a_head_without_a_bias_stay_as_they_are() -> None:
    trained, without_bias = nn.Linear(4, 3), nn.Linear(4, 3, bias=False)
    before = trained.bias.detach().clone(), without_bias.weight.detach().clone()
    for head in (trained, without_bias):
        Sigmoid.of(LABELS).start_training(nn.Sequential(head))
    torch.testing.assert_close((trained.bias, without_bias.weight), before)
