"""The terms for numbers compared with a reference in numpy, and the units in which a model is trained and answers.

Shapes: A answers.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from kdray.losses.distillation import Distillation, Targets
from kdray.losses.value import Value
from tests.losses.comparing import soft_loss

A = 6
UNITS = [(2.5, 1.5), (1e6, 3e5), (-0.02, 1e-3), (1_000_000.0, 25.0)]
"""Mean and standard deviation of numbers: scores, prices, small numbers, and numbers far from zero."""
INPUTS = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 3]]), "attention_mask": torch.ones(2, 3, dtype=torch.int64)}


def numbers(mean: float, spread: float) -> np.ndarray:
    return mean + spread * np.random.default_rng(0).normal(0, 1, A)


def model_with_bias() -> PreTrainedModel:
    sizes: dict[str, Any] = {"vocab_size": 20, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    model: PreTrainedModel = BertForSequenceClassification(BertConfig(**sizes, num_hidden_layers=1, num_labels=1))
    return model.eval()


def model_without_bias() -> PreTrainedModel:
    sizes: dict[str, Any] = {"vocab_size": 20, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, num_hidden_layers=1, num_labels=1, pad_token_id=0)
    model: PreTrainedModel = LlamaForSequenceClassification(config)
    return model.eval()


def head(model: nn.Module) -> nn.Linear:
    return [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1][-1]


def answers(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(**INPUTS).logits
        return logits


@pytest.mark.parametrize(("mean", "spread"), UNITS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_equals_the_reference(mean: float, spread: float, alpha: float) -> None:
    gold, teacher = numbers(mean, spread), numbers(mean, spread)[::-1].copy()
    student = np.random.default_rng(1).normal(0, 1, A)
    value = Value.of(gold)
    targets = Targets(torch.from_numpy(gold), torch.from_numpy(teacher)[:, None])
    loss = Distillation(alpha=alpha).loss(torch.from_numpy(student)[:, None], targets, value)
    standardised = (gold - gold.mean()) / gold.std()
    soft, hard = (student - (teacher - gold.mean()) / gold.std()) ** 2, (student - standardised) ** 2
    np.testing.assert_allclose(loss.total_A, alpha * soft + (1 - alpha) * hard, rtol=1e-2, atol=1e-2)


def test_the_temperature_changes_nothing() -> None:
    value, student, teacher = Value(3.0, 2.0), torch.randn(A, 1), torch.randn(A, 1)
    assert torch.equal(soft_loss(value, student, teacher, 1.0), soft_loss(value, student, teacher, 7.0))


def test_answers_without_gold_have_a_hard_term_of_zero_and_no_gradient_of_it() -> None:
    student = torch.linspace(-1, 1, A).reshape(A, 1).requires_grad_()
    gold = torch.from_numpy(numbers(3, 2))
    masked = gold.clone()
    masked[[0, 4]] = torch.nan
    value = Value(3.0, 2.0)
    hard_A, known = value.hard_loss(student, masked), [1, 2, 3, 5]
    torch.testing.assert_close(hard_A[known], value.hard_loss(student, gold)[known])
    hard_A.sum().backward()
    assert student.grad is not None
    assert hard_A[[0, 4]].tolist() == [0, 0]
    assert student.grad[[0, 4]].abs().max() == 0
    assert torch.isfinite(student.grad).all()


def test_the_units_are_those_of_the_rows_with_gold() -> None:
    assert Value.of(np.array([1.0, np.nan, 3.0])) == Value(2.0, 1.0)
    assert Value.of(np.array([4.0, 4.0])) == Value(4.0, 1.0)


@pytest.mark.parametrize(("mean", "spread"), UNITS)
@pytest.mark.parametrize("make", [model_with_bias, model_without_bias])
def test_a_trained_model_answers_as_before_in_the_units_of_the_data(make: Any, mean: float, spread: float) -> None:
    model = make()
    with torch.no_grad():
        if head(model).bias is not None:
            head(model).bias.fill_(mean)
        head(model).weight.mul_(spread)
    before = answers(model)
    value = Value(mean, spread).start_training(model)
    in_training = answers(model)
    np.testing.assert_allclose(value.in_data_units(in_training.numpy()), before.numpy(), rtol=1e-5, atol=1e-5 * spread)
    assert in_training.abs().max() < 20
    value.end_training(model)
    torch.testing.assert_close(answers(model), before, rtol=1e-5, atol=1e-5 * spread)


@pytest.mark.parametrize(("mean", "spread"), UNITS)
def test_a_new_model_starts_near_the_mean_of_the_data(mean: float, spread: float) -> None:
    """Its answers are near 0 when it is drawn, which is 40,000 standard deviations below the last of these units."""
    model = model_with_bias()
    drawn = answers(model)
    value = Value(mean, spread).start_training(model)
    assert torch.equal(answers(model), drawn)
    value.end_training(model)
    np.testing.assert_allclose(answers(model).numpy(), mean + spread * drawn.numpy(), rtol=1e-6, atol=1e-5 * spread)


def test_a_head_without_bias_keeps_the_zero_of_the_data() -> None:
    model = model_without_bias()
    assert Value(5.0, 2.0).start_training(model) == Value(0.0, 2.0)


def test_losses_in_the_units_of_the_data_are_squared_differences() -> None:
    value = Value(3.0, 2.0).for_data_units()
    hard = value.hard_loss(torch.tensor([[4.0], [7.0]]), torch.tensor([5.0, 4.0], dtype=torch.float64))
    assert hard.tolist() == [1.0, 9.0]


def test_the_hard_term_is_a_mean_over_the_answers_with_gold() -> None:
    """`gold_weight` makes it so: the sum over all answers, divided by their number, is that mean."""
    gold = torch.tensor([1.0, torch.nan, 3.0, torch.nan])
    targets = Targets(gold, torch.zeros(4, 1), gold_weight=4 / 2)
    loss = Distillation(alpha=0.5).loss(torch.zeros(4, 1), targets, Value(0.0, 1.0))
    assert loss.terms["hard"].item() / 4 == pytest.approx(0.5 * (1 + 9) / 2)
