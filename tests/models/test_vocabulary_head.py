"""The last layer of a language model, computed behind the forward pass: the same outputs and gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdray.models import vocabulary_head
from kdray.models.vocabulary_head import answer, late_head
from tests.models.vocabulary_models import CAUSAL, MASKED, V, batch_of, language_model

DENSE = ("mobilebert", "gemma2")
"""Families that compute their logits with more than their last layer and a factor."""
LATE = tuple(family for family in (*MASKED, *CAUSAL) if family not in DENSE)


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.eval()


def gradients(model: nn.Module, outputs: Tensor) -> dict[str, Tensor]:
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2))
    model.zero_grad()
    (outputs * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", [*MASKED, *CAUSAL])
def test_outputs_and_gradients_are_those_of_the_model(family: str) -> None:
    model, batch = without_dropout(language_model(family)), batch_of()
    expected = batch.answers(model(**batch.inputs).logits)
    answers = answer(model, batch)
    outputs = answers.outputs()
    assert outputs.shape == (len(answers), V)
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-5)
    parts = torch.cat([answers.outputs(slice(start, start + 4)) for start in range(0, len(answers), 4)])
    torch.testing.assert_close(parts, expected, rtol=1e-5, atol=1e-5)
    ours, dense = gradients(model, outputs), gradients(model, batch.answers(model(**batch.inputs).logits))
    assert ours.keys() == dense.keys()
    for name in dense:
        torch.testing.assert_close(ours[name], dense[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("family", LATE)
def test_the_last_layer_is_late(family: str) -> None:
    model, batch = language_model(family), batch_of()
    assert late_head(model) is model.get_output_embeddings()
    assert answer(model, batch).states_AxH.shape[1] != V
    assert model(**batch.inputs).logits.shape[-1] == V  # the model itself stays as it was


@pytest.mark.parametrize("family", DENSE)
def test_a_model_that_computes_more_keeps_its_forward_pass(family: str) -> None:
    model, batch = language_model(family), batch_of()
    assert late_head(model) is None
    assert answer(model, batch).states_AxH.shape == (len(batch.gold), V)


def test_small_weights_hide_nothing_behind_the_last_layer() -> None:
    """A limit of the logits does not change logits near 0 by more than rounding."""
    assert late_head(language_model("gemma2", initializer_range=1e-4)) is None


def test_a_factor_of_the_logits_is_not_one_of_their_bias() -> None:
    model = language_model("granite", logits_scaling=7.0)
    assert late_head(model) is not None
    biased = language_model("granite", logits_scaling=7.0)
    biased.lm_head.bias = nn.Parameter(torch.zeros(V))  # as a new layer has it
    assert late_head(biased) is None


def test_a_model_without_limit_of_its_logits_is_late() -> None:
    assert late_head(language_model("gemma2", final_logit_softcapping=None)) is not None


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_embeddings_may_be_tied(family: str, tied: bool) -> None:
    model = language_model(family, tie_word_embeddings=tied)
    head = late_head(model)
    assert isinstance(head, nn.Linear)
    assert (head.weight is model.get_input_embeddings().weight) is tied


class AddedBias(nn.Module):
    """A model that adds a number for each token to what its last layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.bias = language_model("gpt2"), nn.Parameter(torch.zeros(V))

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_output_embeddings()

    def forward(self, **inputs: Tensor):
        outputs = self.model(**inputs)
        outputs.logits = outputs.logits + self.bias
        return outputs


def test_a_model_that_expects_logits_is_not_late() -> None:
    model = AddedBias()
    assert late_head(model) is None
    assert answer(model, batch_of()).outputs().shape[-1] == V


def test_a_model_for_classes_is_asked_for_nothing() -> None:
    model = language_model("bert")
    assert answer(model, batch_of(top_k=None)).head is None


@pytest.mark.parametrize("family", ["bert", "gpt2", "mobilebert", "gemma2"])
def test_the_check_changes_neither_the_mode_nor_random_numbers(family: str) -> None:
    model = language_model(family)
    frozen = next(module for module in model.modules() if isinstance(module, nn.Dropout | nn.Embedding))
    frozen.eval()  # a part that is not trained
    modes = {name: module.training for name, module in model.named_modules()}
    before = torch.get_rng_state()
    late_head(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not frozen.training
    assert model.training


def test_a_failing_model_keeps_its_mode() -> None:
    model = language_model("bert")
    model.bert.forward = lambda *_inputs, **_named: 1 / 0
    with pytest.raises(ZeroDivisionError):
        late_head(model)
    assert all(module.training for module in model.modules())


def test_a_model_is_checked_once() -> None:
    model, calls = language_model("bert"), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    for _ in range(3):
        answer(model, batch_of())
    assert len(calls) == 3 + 3


@pytest.mark.parametrize("family", ["bert", "llama", "gemma2"])
def test_autocast_keeps_the_gradients_of_the_first_batch(family: str) -> None:
    """Autocast keeps rounded weights until its end; those of a pass without gradients would have none."""
    model, batch = without_dropout(language_model(family)), batch_of()
    found = []
    for compute in (lambda: answer(model, batch).outputs(), lambda: batch.answers(model(**batch.inputs).logits)):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = compute()
        assert outputs.dtype == torch.bfloat16
        found.append((outputs, gradients(model, outputs.float())))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=2e-2, atol=2e-2)
    assert found[0][1].keys() == found[1][1].keys() == {name for name, _ in model.named_parameters()}
    for name, gradient in found[1][1].items():
        assert torch.dist(found[0][1][name], gradient) <= 0.05 * gradient.norm() + 1e-3, name


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda count: monkeypatch.setattr(vocabulary_head, "LOGITS_AT_ONCE", count)


@pytest.mark.parametrize("family", ["bert", "gemma2"])
def test_parts_have_few_outputs_and_all_answers(family: str, few_at_once: Callable[[int], None]) -> None:
    answers = answer(language_model(family), batch_of())
    assert list(answers.parts()) == [slice(0, 11)]
    few_at_once(4 * V + 1)
    assert list(answers.parts()) == [slice(0, 4), slice(4, 8), slice(8, 11)]
    few_at_once(1)
    assert len(list(answers.parts())) == 11
    classes = answer(language_model(family), batch_of(top_k=None))
    assert list(classes.parts()) == [slice(0, 11)]  # a term may relate them with each other
