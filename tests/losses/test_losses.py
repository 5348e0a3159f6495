"""The losses compared with a reference in numpy, and their properties for any logits.

Shapes: B examples, C classes.
"""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdray.errors import SpecError
from kdray.losses.distillation import Distillation, Loss, Targets
from kdray.losses.logit_difference import mean_squared_difference
from kdray.losses.schedule import SCHEDULES
from kdray.losses.soft_terms import SOFT_TERMS
from kdray.losses.softmax import SOFTMAX
from tests.losses.comparing import soft_loss

B, C = 5, 3
LOGITS = arrays(np.float64, (B, C), elements=st.floats(-8, 8))
LABELS = torch.arange(B) % C
TEMPERATURES = st.floats(0.25, 16)

FLOAT_SETTINGS = {
    name: field
    for name, field in Distillation.model_fields.items()
    if float in (field.annotation, *get_args(field.annotation))
}
"""Read from the class, not listed here: a new term's weight is in it without a change of this file."""


def non_zero_values(name: str) -> st.SearchStrategy[float]:
    """Values above 0 that the limits of this setting allow."""
    metadata = FLOAT_SETTINGS[name].metadata
    limits = [getattr(limit, kind) for limit in metadata for kind in ("le", "lt") if hasattr(limit, kind)]
    return st.floats(0.01, min([*limits, 16.0]), exclude_max=any(hasattr(limit, "lt") for limit in metadata))


ALL_TERMS = st.builds(
    Distillation,
    # The share of the training in which a schedule goes on may be any; the first one must be below the second one.
    **{name: non_zero_values(name) for name in FLOAT_SETTINGS if not name.startswith("schedule_")},
    soft=st.sampled_from(list(SOFT_TERMS)),
    schedule=st.sampled_from(list(SCHEDULES)),
    standardize=st.booleans(),
)
"""Settings in which every weight is above 0."""


def reference(student, teacher, labels, temperature, alpha, mse):
    """The loss of each example, computed with numpy."""

    def probabilities(logits):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    teacher_T, student_T = probabilities(teacher / temperature), probabilities(student / temperature)
    soft = temperature**2 * (teacher_T * np.log(teacher_T / student_T)).sum(axis=1)
    hard = -np.log(probabilities(student)[np.arange(len(labels)), labels])
    return alpha * soft + (1 - alpha) * hard + mse * ((student - teacher) ** 2).mean(axis=1)


def loss_of(settings: Distillation, student, teacher, labels) -> Loss:
    """The loss of classes."""
    return settings.loss(student, Targets(labels, teacher), SOFTMAX)


def random_batch(seed: int = 0):
    """Student logits, teacher logits and labels."""
    random = np.random.default_rng(seed)
    return random.normal(0, 3, (B, C)), random.normal(0, 3, (B, C)), random.integers(0, C, B)


def test_golden_numbers():
    student, teacher = torch.tensor([[1.0, 0.0], [-1.0, 2.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    loss = loss_of(Distillation(temperature=2.0, alpha=0.5), student, teacher, torch.tensor([0, 1]))
    assert loss.total_A.tolist() == pytest.approx([0.2093200, 0.9688036], abs=1e-6)
    assert {name: term.item() for name, term in loss.terms.items()} == pytest.approx(
        {"soft": 0.9971991, "hard": 0.1809245}, abs=1e-6
    )


@pytest.mark.parametrize(
    ("temperature", "alpha", "mse"), [(1, 0.5, 0), (4, 0.9, 0), (2, 1, 0.3), (0.5, 0, 2), (3, 0, 0)]
)
def test_the_loss_equals_the_reference(temperature, alpha, mse):
    student, teacher, labels = random_batch()
    settings = Distillation(temperature=temperature, alpha=alpha, logit_mse=mse)
    loss = loss_of(settings, *map(torch.from_numpy, (student, teacher, labels)))
    np.testing.assert_allclose(loss.total_A, reference(student, teacher, labels, temperature, alpha, mse), rtol=1e-4)
    assert loss.total_A.shape == (B,)
    torch.testing.assert_close(sum(loss.terms.values()), loss.total_A.sum())


@given(LOGITS, TEMPERATURES)
def test_soft_loss_and_logit_mse_are_zero_if_student_and_teacher_are_equal(logits, temperature):
    logits = torch.from_numpy(logits)
    assert soft_loss(SOFTMAX, logits, logits, temperature).abs().max() < 1e-12
    assert mean_squared_difference(logits, logits).abs().max() == 0


@given(LOGITS, LOGITS, TEMPERATURES)
def test_soft_loss_is_never_negative_and_does_not_change_with_a_shift(student, teacher, temperature):
    student, teacher = torch.from_numpy(student), torch.from_numpy(teacher)
    soft = soft_loss(SOFTMAX, student, teacher, temperature)
    assert soft.min() > -1e-9
    torch.testing.assert_close(soft_loss(SOFTMAX, student + 3, teacher - 2, temperature), soft, atol=1e-9, rtol=1e-9)


@given(LOGITS, LOGITS, TEMPERATURES)
def test_the_gradient_of_soft_loss_is_t_times_the_difference_of_probabilities(student, teacher, temperature):
    student, teacher = torch.from_numpy(student).requires_grad_(), torch.from_numpy(teacher)
    soft_loss(SOFTMAX, student, teacher, temperature).sum().backward()
    difference = (student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
    torch.testing.assert_close(student.grad, temperature * difference.detach(), atol=1e-9, rtol=1e-9)


def test_at_a_high_temperature_the_gradient_is_the_difference_of_centred_logits():
    student, teacher, _ = map(torch.from_numpy, random_batch())
    student.requires_grad_()
    soft_loss(SOFTMAX, student, teacher, 1e4).sum().backward()
    difference = (student - teacher).detach()
    expected = (difference - difference.mean(dim=1, keepdim=True)) / C
    torch.testing.assert_close(student.grad, expected, atol=1e-2, rtol=1e-2)


@given(LOGITS, LOGITS, st.permutations(range(C)), TEMPERATURES)
def test_the_order_of_classes_does_not_matter(student, teacher, order, temperature):
    student, teacher = torch.from_numpy(student), torch.from_numpy(teacher)
    permuted_labels = torch.tensor(order).argsort()[LABELS]
    torch.testing.assert_close(
        soft_loss(SOFTMAX, student[:, order], teacher[:, order], temperature),
        soft_loss(SOFTMAX, student, teacher, temperature),
    )
    torch.testing.assert_close(
        SOFTMAX.hard_loss(student[:, order], permuted_labels), SOFTMAX.hard_loss(student, LABELS)
    )
    torch.testing.assert_close(
        mean_squared_difference(student[:, order], teacher[:, order]), mean_squared_difference(student, teacher)
    )


def test_extreme_logits_stay_finite():
    student, teacher = torch.tensor([[3e4, -3e4]]), torch.tensor([[-3e4, 3e4]])
    loss = loss_of(Distillation(temperature=0.1, alpha=0.5), student, teacher, torch.tensor([1]))
    assert torch.isfinite(loss.total_A).all()


def test_only_terms_that_compare_with_the_teacher_need_its_logits():
    student, _, labels = map(torch.from_numpy, random_batch())
    loss = loss_of(Distillation(alpha=0.0), student, None, labels)
    assert set(loss.terms) == {"hard"}
    with pytest.raises(SpecError, match=r"alpha 0\.5 .* need the teacher's logits"):
        loss_of(Distillation(alpha=0.5), student, None, labels)


@given(ALL_TERMS, LOGITS, LOGITS, LOGITS)
def test_labels_only_does_not_depend_on_the_teacher(settings, student, teacher, other_teacher):
    assert settings.needs_teacher
    labels_only = settings.labels_only()
    assert not labels_only.needs_teacher
    student = torch.from_numpy(student)
    expected = loss_of(labels_only, student, None, LABELS)
    for logits in (teacher, other_teacher):
        loss = loss_of(labels_only, student, torch.from_numpy(logits), LABELS)
        assert torch.equal(loss.total_A, expected.total_A)
        assert loss.terms == expected.terms


def test_terms_of_weight_zero_are_not_computed():
    student, teacher, labels = map(torch.from_numpy, random_batch())
    invalid_labels = torch.full_like(labels, C)  # the hard loss would raise an error for them
    assert set(loss_of(Distillation(alpha=1.0), student, teacher, invalid_labels).terms) == {"soft"}
    assert set(loss_of(Distillation(logit_mse=1.0), student, teacher, labels).terms) == {"soft", "hard", "logit_mse"}


def test_half_precision_logits_are_computed_in_float32():
    student, teacher, labels = map(torch.from_numpy, random_batch())
    half, settings = student.bfloat16().requires_grad_(), Distillation(temperature=3.0, alpha=0.5, logit_mse=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(settings, half, teacher.float(), labels)
    assert loss.total_A.dtype == torch.float32
    torch.testing.assert_close(loss.total_A, loss_of(settings, half.float(), teacher, labels).total_A)
    loss.total_A.sum().backward()
    assert half.grad is not None
    assert not any(term.requires_grad for term in loss.terms.values())


@pytest.mark.parametrize(
    ("name", "value"), [("alpha", 1.2), ("alpha", -0.1), ("temperature", 0), ("logit_mse", -1), ("alpha", float("nan"))]
)
def test_values_outside_the_limits_are_refused(name, value):
    with pytest.raises(SpecError, match=rf"Distillation\.{name}: got"):
        Distillation(**{name: value})
