"""The inner terms: each against a reference in plain loops, and properties that all of them have.

Shapes: B rows, A heads, R relation heads, L tokens of the longest row, N tokens without padding, H and D widths.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdray.losses.inner_settings import InnerSettings
from kdray.losses.inner_term import HiddenTerm
from kdray.losses.inner_terms import INNER_SETTINGS, INNER_TERMS
from kdray.losses.states import Attention
from tests.losses.inner_states import (
    ATTENTION,
    CAUSAL,
    IS_TOKEN,
    LENGTHS,
    LOCAL,
    VECTORS,
    B,
    L,
    N,
    attention_term,
    changed,
    random_attention,
    with_padding,
)

HIDDEN = {name: kind() for name, kind in INNER_TERMS.items() if issubclass(kind, HiddenTerm)}
every_hidden = pytest.mark.parametrize("name", list(HIDDEN))
every_attention = pytest.mark.parametrize("name", list(ATTENTION))
HEADS = [(2, 2), (2, 3), (4, 2), (1, 6)]
"""The heads of student and teacher; each has 6 numbers in a head, so the relation heads of the teacher always fit."""


# References: one token at a time --------------------------------------------------------------------------------------


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum())


def tokens() -> Iterator[tuple[int, int, int]]:
    """The row, the place, and the length of its row, for each token."""
    return ((row, place, length) for row, length in enumerate(LENGTHS) for place in range(length))


def scores_of(attention: Attention, row: int, place: int, keys: list[int]) -> np.ndarray:
    """The scores of a token by head (A x keys)."""
    queries, all_keys = attention.queries_BxAxLxD[row, :, place].numpy(), attention.keys_BxAxLxD[row].numpy()
    return attention.scaling * np.stack([all_keys[head][keys] @ query for head, query in enumerate(queries)])


def looked_at(models: tuple[Attention, Attention], row: int, place: int, length: int) -> list[int]:
    """The places of the tokens that both models let this token look at."""
    masks = [each.allowed.expand(B, 1, L, L)[row, 0, place] for each in models if each.allowed is not None]
    return [key for key in range(length) if all(mask[key] for mask in masks)]


def attention_reference(
    compare: Callable[[np.ndarray, np.ndarray], float], after: Callable[[np.ndarray], np.ndarray]
) -> Callable[..., list[float]]:
    """Compares the scores after a function, head by head, or their mean over the heads where the numbers differ."""

    def reference(student: Attention, teacher: Attention, heads: int | None) -> list[float]:
        terms = []
        for row, place, length in tokens():
            keys = looked_at((student, teacher), row, place, length)
            s, t = (np.stack([after(a) for a in scores_of(each, row, place, keys)]) for each in (student, teacher))
            pairs = list(zip(s, t, strict=True)) if len(s) == len(t) else [(s.mean(axis=0), t.mean(axis=0))]
            terms.append(float(np.mean([compare(*pair) for pair in pairs])))
        return terms

    return reference


def relation(vectors: Tensor, row: int, place: int, length: int, heads: int) -> np.ndarray:
    """The relation of a token to all tokens of its row, by relation head (R x length)."""
    concatenated = vectors[row].transpose(0, 1).reshape(L, -1).numpy()[:length]
    parts = np.split(concatenated, heads, axis=1)
    return np.stack([softmax(part @ part[place] / np.sqrt(part.shape[1])) for part in parts])


def relation_reference(*names: str) -> Callable[..., list[float]]:
    """The divergence of the relations between these vectors."""

    def reference(student: Attention, teacher: Attention, heads: int | None) -> list[float]:
        heads = heads or teacher.queries_BxAxLxD.shape[1]
        return [
            float(
                np.mean(
                    [
                        kl(t, s)
                        for name in names
                        for s, t in zip(
                            relation(getattr(student, name), *token, heads),
                            relation(getattr(teacher, name), *token, heads),
                            strict=True,
                        )
                    ]
                )
            )
            for token in tokens()
        ]

    return reference


def squared_difference(s: np.ndarray, t: np.ndarray) -> float:
    return float(((s - t) ** 2).mean())


def cosine_distance(s: np.ndarray, t: np.ndarray) -> float:
    return float(1 - s @ t / np.sqrt((s @ s) * (t @ t)))


def normalised_difference(s: np.ndarray, t: np.ndarray) -> float:
    return float(((s / np.sqrt(s @ s) - t / np.sqrt(t @ t)) ** 2).sum())


REFERENCES: dict[str, Callable[..., Any]] = {
    "hidden_mse": squared_difference,
    "hidden_cosine": cosine_distance,
    "hidden_first": normalised_difference,
    "embeddings": squared_difference,
    "attention_scores": attention_reference(squared_difference, np.asarray),
    "attention_maps": attention_reference(lambda s, t: kl(t, s), softmax),
    "relations": relation_reference(*VECTORS),
    "value_relation": relation_reference("values_BxAxLxD"),
}
"""The name of a term -> its reference."""


def test_every_term_has_a_reference_and_two_weights() -> None:
    assert list(REFERENCES) == list(INNER_TERMS)
    for name, kind in INNER_TERMS.items():
        assert name == kind.name
        assert {name, f"{name}_end"} <= set(InnerSettings.model_fields) <= INNER_SETTINGS
        assert kind.reads <= set(InnerSettings.model_fields)


@every_hidden
def test_a_term_on_hidden_states_equals_its_reference(name: str) -> None:
    student_NxH, teacher_NxH = torch.randn(2, N, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected_N = [REFERENCES[name](s, t) for s, t in zip(student_NxH.numpy(), teacher_NxH.numpy(), strict=True)]
    np.testing.assert_allclose(HIDDEN[name].values(student_NxH, teacher_NxH), expected_N)


@every_attention
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(
    "masks", [(None, None), (CAUSAL, None), (CAUSAL, LOCAL)], ids=["all", "causal student", "causal and local"]
)
def test_a_term_on_attention_equals_its_reference(name: str, heads: tuple[int, int], masks: Any) -> None:
    student, teacher = (
        replace(random_attention(seed, each), allowed=mask)
        for seed, (each, mask) in enumerate(zip(heads, masks, strict=True))
    )
    expected_N = REFERENCES[name](student, teacher, None)
    np.testing.assert_allclose(attention_term(name, student, teacher), expected_N, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["relations", "value_relation"])
@pytest.mark.parametrize("heads", [1, 2, 6, 12])
def test_relation_heads_are_counted_for_both_models(name: str, heads: int) -> None:
    student, teacher = random_attention(0, heads=2, size=6), random_attention(1, heads=4, size=9)
    expected_N = REFERENCES[name](student, teacher, heads)
    np.testing.assert_allclose(attention_term(name, student, teacher, heads), expected_N, rtol=1e-9, atol=1e-12)


# Properties of all terms ----------------------------------------------------------------------------------------------


@every_hidden
def test_a_term_on_hidden_states_is_zero_where_both_are_equal(name: str) -> None:
    student_NxH, teacher_NxH = torch.randn(2, N, 6, generator=torch.Generator().manual_seed(1))
    assert HIDDEN[name].values(student_NxH, student_NxH).abs().max() < 1e-6
    assert HIDDEN[name].values(student_NxH, teacher_NxH).min() > 1e-3


@every_attention
@pytest.mark.parametrize("allowed", [None, CAUSAL, LOCAL])
def test_a_term_on_attention_is_zero_where_both_are_equal(name: str, allowed: Tensor | None) -> None:
    student = replace(random_attention(2, dtype=torch.float32), allowed=allowed)
    other = replace(random_attention(3, dtype=torch.float32), allowed=allowed)
    assert attention_term(name, student, student).abs().max() == 0
    # The row with one token has only itself to look at: softmax gives it the share 1 in all models.
    assert attention_term(name, student, other)[[1, 2, 3, 4]].min() > 1e-3


@every_hidden
def test_the_gradient_of_a_term_on_hidden_states_is_right(name: str) -> None:
    student_NxH, teacher_NxH = torch.randn(2, N, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda states: HIDDEN[name].values(states, teacher_NxH), student_NxH.requires_grad_()
    )


@every_attention
@pytest.mark.parametrize("heads", [(2, 2), (2, 3)])
def test_the_gradient_of_a_term_on_attention_is_right(name: str, heads: tuple[int, int]) -> None:
    """Compared with differences of the term, with nan in the padding and a token that may look at none."""
    allowed = CAUSAL.clone()
    allowed[2] = False
    student, teacher = (
        replace(changed(random_attention(5 + side, each, size=3), padded_with_nan), allowed=allowed)
        for side, each in enumerate(heads)
    )

    def term_of(*vectors: Tensor) -> Tensor:
        padded = dict(zip(VECTORS, map(padded_with_nan, vectors), strict=True))
        return attention_term(name, replace(student, **padded), teacher)

    vectors = [with_padding(getattr(student, each), 0.0).requires_grad_() for each in VECTORS]
    assert torch.autograd.gradcheck(term_of, vectors)


def padded_with_nan(states: Tensor) -> Tensor:
    return with_padding(states, float("nan"))


@every_attention
@pytest.mark.parametrize("padding", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("heads", [(2, 2), (2, 3)])
def test_padding_changes_nothing(name: str, padding: float, heads: tuple[int, int]) -> None:
    """To the last bit, neither in the term nor in its gradient, whatever the padding contains."""
    results = []
    for filling in (0.0, padding):
        student, teacher = (
            changed(random_attention(7 + side, each, dtype=torch.float32), partial(with_padding, padding=filling))
            for side, each in enumerate(heads)
        )
        student = changed(student, lambda states: states.requires_grad_())
        term_N = attention_term(name, student, teacher)
        term_N.sum().backward()
        results.append([term_N.detach(), *(getattr(student, each).grad for each in VECTORS)])
    for without, with_it in zip(*results, strict=True):
        assert (without is None) == (with_it is None)
        if without is not None:
            assert torch.equal(without, with_it)
            assert without.isfinite().all()


@every_attention
@pytest.mark.parametrize("heads", [(2, 2), (2, 3)])
def test_neither_other_rows_nor_longer_ones_change_a_row(name: str, heads: tuple[int, int]) -> None:
    student, teacher = (random_attention(9 + side, each) for side, each in enumerate(heads))
    together_N = attention_term(name, student, teacher)
    alone = []
    for row, length in enumerate(LENGTHS):
        place = (slice(row, row + 1), slice(None), slice(length))
        one, other = (changed(each, itemgetter(place)) for each in (student, teacher))
        alone.append(ATTENTION[name]().values(one, other, torch.ones(1, length, dtype=torch.bool)))
    torch.testing.assert_close(torch.cat(alone), together_N)


@every_attention
def test_padding_may_be_on_the_left(name: str) -> None:
    student, teacher = random_attention(11), random_attention(12)
    is_token = IS_TOKEN.flip(1)
    mirrored = (changed(each, lambda states: states.flip(2)) for each in (student, teacher))
    found_BxL = torch.zeros(B, L, dtype=torch.float64)
    found_BxL[is_token] = ATTENTION[name]().values(*mirrored, is_token)
    torch.testing.assert_close(found_BxL.flip(1)[IS_TOKEN], attention_term(name, student, teacher))


@every_attention
@pytest.mark.parametrize("heads", [(2, 2), (2, 3)])
def test_bf16_states_are_computed_in_float32_and_are_close(name: str, heads: tuple[int, int]) -> None:
    wide = [random_attention(13 + side, each, dtype=torch.float32) for side, each in enumerate(heads)]
    half = [changed(each, lambda states: states.bfloat16()) for each in wide]
    rounded = [changed(each, lambda states: states.float()) for each in half]
    term_N = attention_term(name, half[0], half[1])
    assert term_N.dtype == torch.float32
    assert torch.equal(term_N, attention_term(name, rounded[0], rounded[1]))
    torch.testing.assert_close(term_N, attention_term(name, wide[0], wide[1]), rtol=0.05, atol=0.02)


@every_attention
@pytest.mark.parametrize("heads", [(2, 2), (2, 3)])
def test_very_large_scores_have_finite_terms_and_gradients(name: str, heads: tuple[int, int]) -> None:
    """The shares of most tokens are then too small for a float."""
    student, teacher = (
        changed(random_attention(15 + side, each, dtype=torch.float32), lambda states: 100 * states)
        for side, each in enumerate(heads)
    )
    student = changed(student, lambda states: states.requires_grad_())
    term_N = attention_term(name, student, teacher)
    term_N.sum().backward()
    assert term_N.isfinite().all()
    assert all(grad.isfinite().all() for each in VECTORS if (grad := getattr(student, each).grad) is not None)


def test_the_documents_have_every_inner_term() -> None:
    text = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
    section = text.partition("\n## Inner terms\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `distillation\.(\w+)` \|", section, re.MULTILINE) == list(INNER_TERMS)
