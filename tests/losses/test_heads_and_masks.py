"""Terms that compare attention: which pairs of tokens count, and models with other heads and widths.

Shapes: B rows, L tokens of the longest row, N tokens without padding.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kdray.errors import SpecError
from kdray.losses.attention_relations import check_relation_heads
from kdray.losses.states import Attention
from tests.losses.inner_states import (
    CAUSAL,
    LENGTHS,
    LOCAL,
    B,
    L,
    N,
    attention_term,
    changed,
    random_attention,
)

MASKED = ("attention_scores", "attention_maps")
"""The terms that read which tokens may look at which."""


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("heads", [(2, 2), (2, 3)])
def test_a_pair_that_one_model_forbids_does_not_count(name: str, heads: tuple[int, int]) -> None:
    student, teacher = (random_attention(17 + side, each) for side, each in enumerate(heads))
    both = attention_term(name, replace(student, allowed=CAUSAL), replace(teacher, allowed=CAUSAL))
    for one in (
        attention_term(name, replace(student, allowed=CAUSAL), teacher),
        attention_term(name, student, replace(teacher, allowed=CAUSAL[None, None])),
        attention_term(name, student, replace(teacher, allowed=CAUSAL.expand(B, heads[1], L, L))),
    ):
        torch.testing.assert_close(one, both)
    assert not torch.allclose(both, attention_term(name, student, teacher))


@pytest.mark.parametrize("name", MASKED)
def test_heads_may_have_masks_of_their_own(name: str) -> None:
    """Head by head, each has its own; where the numbers of heads differ, a pair counts if all heads allow it."""
    masks = torch.stack([CAUSAL, LOCAL])[None]
    student, teacher = random_attention(19), random_attention(20)
    by_head = [
        attention_term(name, *(head_of(each, head, masks[:, head : head + 1]) for each in (student, teacher)))
        for head in range(2)
    ]
    masked = replace(student, allowed=masks)
    torch.testing.assert_close(attention_term(name, masked, teacher), torch.stack(by_head).mean(dim=0))
    other = random_attention(21, heads=3)
    expected_N = attention_term(name, replace(student, allowed=CAUSAL & LOCAL), other)
    torch.testing.assert_close(attention_term(name, masked, other), expected_N)


def head_of(attention: Attention, head: int, allowed: Tensor) -> Attention:
    return replace(changed(attention, lambda states: states[:, head : head + 1]), allowed=allowed)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("heads", [(2, 2), (2, 3)])
def test_a_token_that_may_look_at_none_has_no_part(name: str, heads: tuple[int, int]) -> None:
    student, teacher = (random_attention(22 + side, each, dtype=torch.float32) for side, each in enumerate(heads))
    allowed = torch.ones(L, L, dtype=torch.bool)
    allowed[1] = False
    student = replace(changed(student, lambda states: states.requires_grad_()), allowed=allowed)
    term_N = attention_term(name, student, teacher)
    term_N.sum().backward()
    gradient = student.queries_BxAxLxD.grad
    assert gradient is not None
    assert float(term_N[1].detach()) == pytest.approx(0, abs=1e-6)
    assert gradient[0, :, 1].abs().max() == 0
    assert gradient.isfinite().all()
    others = [place for place in range(N) if place not in (1, LENGTHS[0] + 1)]
    full_N = attention_term(name, replace(student, allowed=None), teacher)
    torch.testing.assert_close(term_N[others], full_N[others])


@pytest.mark.parametrize("name", ["relations", "value_relation"])
def test_relations_are_between_all_tokens_whatever_attention_allows(name: str) -> None:
    student, teacher = random_attention(24), random_attention(25)
    causal = replace(student, allowed=CAUSAL)
    assert torch.equal(attention_term(name, causal, teacher), attention_term(name, student, teacher))


@pytest.mark.parametrize("name", ["relations", "value_relation"])
def test_relations_do_not_change_if_a_head_is_rotated(name: str) -> None:
    """They compare tokens with tokens: which number of a vector has which meaning does not matter."""
    student, teacher = random_attention(26), random_attention(27)

    def rotate(states: Tensor) -> Tensor:
        size = states.shape[-1]
        rotation, _ = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0)).double())
        return states @ rotation

    torch.testing.assert_close(
        attention_term(name, changed(student, rotate), teacher), attention_term(name, student, teacher)
    )


@pytest.mark.parametrize(
    ("heads", "teacher_heads", "part"),
    [
        (5, 4, "distillation.relation_heads: got 5; it does not divide the width of the student's queries (12). "),
        (None, 4, "distillation.relation_heads: not given, so it is 4, as many heads as the teacher has; it does not"),
    ],
)
def test_relation_heads_that_do_not_divide_are_refused(heads: int | None, teacher_heads: int, part: str) -> None:
    student, teacher = random_attention(28, 2, size=6), random_attention(29, teacher_heads, size=7)
    if heads is None:
        student = random_attention(28, 2, size=5)
    with pytest.raises(SpecError) as caught:
        attention_term("relations", student, teacher, heads)
    assert str(caught.value).startswith(part)
    assert str(caught.value).endswith("Allowed for these two models: 1, 2" + (", 4." if heads else "."))


def test_the_width_that_is_not_divided_is_named() -> None:
    assert check_relation_heads(None, 6, {"student's values": 12, "teacher's values": 24}) == 6
    with pytest.raises(SpecError, match=r"of the teacher's values \(20\)\. Allowed for these two models: 1, 2, 4\.$"):
        check_relation_heads(6, 4, {"student's values": 12, "teacher's values": 20})
