"""The loss over a vocabulary in several parts: the same value, terms and gradients as in one."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kdray.data.rows import Batch
from kdray.losses.distillation import Distillation, Loss, Targets
from kdray.losses.objective import Objective
from kdray.losses.top_k import TopK
from kdray.losses.vocabulary import VOCABULARY
from kdray.models import vocabulary_head
from kdray.models.vocabulary_head import answer
from kdray.training.parts import loss_in_parts
from kdray.training.step import may_have_unused_parameters
from tests.models.vocabulary_models import V, batch_of, language_model

SETTINGS = Distillation(alpha=0.6, trust=0.4, temperature=2.0)


def targets_of(batch: Batch, progress: float = 0.0) -> Targets:
    teacher = torch.randn(len(batch.gold), V, generator=torch.Generator().manual_seed(5))
    return Targets(batch.gold, TopK.of_logits(teacher, batch.gold, 5).rows(), gold_weight=1.1, progress=progress)


def loss_of(model: nn.Module, batch: Batch, settings: Distillation = SETTINGS) -> tuple[Loss, dict[str, Tensor]]:
    """The loss of a batch, and its gradients."""
    model.zero_grad()
    torch.manual_seed(3)  # the same dropout each time
    loss = loss_in_parts(answer(model, batch), targets_of(batch), Objective(settings, VOCABULARY).loss_of_outputs)
    loss.total.backward()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "mobilebert", "gemma2"])
def test_parts_give_the_loss_of_all(family: str, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = language_model(family, tie_word_embeddings=tied), batch_of()
    whole, expected = loss_of(model, batch)
    for answers in (4, 1):
        monkeypatch.setattr(vocabulary_head, "LOGITS_AT_ONCE", answers * V)
        loss, gradients = loss_of(model, batch)
        torch.testing.assert_close(loss.total_A, whole.total_A)
        torch.testing.assert_close(loss.terms, whole.terms)
        assert set(loss.terms) == {"soft", "hard"}
        assert gradients.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(gradients[name], expected[name], rtol=1e-3, atol=1e-5, msg=name)


def test_parts_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = language_model("bert"), batch_of()
    found = []
    for answers in (100, 3):
        monkeypatch.setattr(vocabulary_head, "LOGITS_AT_ONCE", answers * V)
        with torch.autocast("cpu", torch.bfloat16):
            torch.manual_seed(3)
            loss = loss_in_parts(
                answer(model, batch), targets_of(batch), Objective(SETTINGS, VOCABULARY).loss_of_outputs
            )
        model.zero_grad()
        loss.total.backward()
        found.append((loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    assert found[0][0].total_A.dtype == torch.float32
    torch.testing.assert_close(found[1][0].total_A, found[0][0].total_A, rtol=1e-2, atol=1e-2)
    for name, gradient in found[0][1].items():
        assert torch.dist(found[1][1][name], gradient) <= 0.05 * gradient.norm() + 1e-3, name


def test_the_first_stage_has_no_term_on_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of the last layer is 0 then, not missing: workers wait for one of each parameter."""
    monkeypatch.setattr(vocabulary_head, "LOGITS_AT_ONCE", 4 * V)
    model, batch = language_model("bert", tie_word_embeddings=False), batch_of()
    settings = Distillation(hidden_mse=1.0, inner_first=0.5)
    loss, gradients = loss_of(model, batch, settings)
    assert loss.terms == {}
    assert not loss.total_A.any()
    assert gradients.keys() == loss_of(model, batch)[1].keys()


@pytest.mark.parametrize("family", ["bert", "gpt2", "gemma2"])
def test_a_batch_without_answers(family: str) -> None:
    model, batch = language_model(family), batch_of()
    none = replace(batch, gold=batch.gold[:0], places_A=batch.places_A[:0] if batch.places_A is not None else None)
    loss, gradients = loss_of(model, none)
    assert (len(loss.total_A), loss.total.item()) == (0, 0.0)
    assert gradients.keys() == {name for name, _ in model.named_parameters()}
    assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "mobilebert", "gpt2"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_no_worker_waits_for_a_gradient_that_never_comes(family: str, is_tied: bool) -> None:
    """A model with a last layer of its own may keep a bias that nothing uses."""
    model, batch = language_model(family, tie_word_embeddings=is_tied), batch_of()
    answer(model, batch).outputs().sum().backward()
    has_unused = any(parameter.grad is None for parameter in model.parameters())
    assert may_have_unused_parameters(model) or not has_unused
    assert not (is_tied and has_unused)
