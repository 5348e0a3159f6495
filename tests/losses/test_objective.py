"""The whole loss of a training: inner terms beside the terms on outputs, projections, stages and schedules.

Shapes: A answers, B rows, C outputs, L tokens of the longest row, N tokens without padding, H widths.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from kdray.losses.attention_maps import AttentionMaps
from kdray.losses.distillation import Distillation, Loss, Targets
from kdray.losses.inner_term import AttentionTerm
from kdray.losses.inner_terms import INNER_TERMS
from kdray.losses.objective import Objective
from kdray.losses.softmax import SOFTMAX
from kdray.losses.states import InnerTargets, Needs, States
from tests.losses.inner_states import IS_TOKEN, VECTORS, B, N, changed, random_attention, random_hidden, with_padding

PAIRS = ((1, 2), (2, 4))
STUDENT_LAYERS, TEACHER_LAYERS = (0, 1, 2), (0, 2, 4)
TOKEN_WEIGHT, ROW_WEIGHT = B / N, 1.0
"""One answer for each row."""
every_term = pytest.mark.parametrize("name", list(INNER_TERMS))


def states(layers: tuple[int, ...], width: int = 6, heads: int = 2, seed: int = 0) -> States:
    """The states of these layers."""
    attention = {each: random_attention(seed + each, heads, dtype=torch.float32) for each in layers if each}
    return States(random_hidden(seed, width, layers), attention)


def targets_of(student: States, teacher: States) -> InnerTargets:
    return InnerTargets(student, teacher, IS_TOKEN, TOKEN_WEIGHT, ROW_WEIGHT)


INNER = targets_of(states(STUDENT_LAYERS), states(TEACHER_LAYERS, seed=100))


def objective_of(settings: dict[str, Any], widths: tuple[int, int] = (6, 6), seed: int = 0) -> Objective:
    objective = Objective(Distillation(**settings), SOFTMAX, PAIRS)
    objective.add_projections(dict.fromkeys(STUDENT_LAYERS, widths[0]), dict.fromkeys(TEACHER_LAYERS, widths[1]), seed)
    return objective


def outputs(seed: int = 0) -> tuple[Tensor, Targets]:
    """The logits of a student (A x C), and what they are compared with."""
    student_AxC, teacher_AxC = torch.randn(2, B, 3, generator=torch.Generator().manual_seed(seed))
    return student_AxC.requires_grad_(), Targets(torch.tensor([0, 1, 2]), teacher_AxC)


def loss_of(objective: Objective, inner: InnerTargets | None = INNER, progress: float = 0.0) -> Loss:
    student_AxC, targets = outputs()
    loss: Loss = objective(student_AxC, replace(targets, progress=progress), inner)
    return loss


def value_of(name: str, inner: InnerTargets = INNER, **settings: Any) -> float:
    """The sum of a term with the weight 1 over the batch."""
    return float(loss_of(objective_of({name: 1.0} | settings), inner).terms[name])


# The sum of the terms -------------------------------------------------------------------------------------------------


@every_term
def test_a_term_is_added_to_the_loss_of_the_outputs_with_its_weight(name: str) -> None:
    without = loss_of(objective_of({}), None)
    assert without.inner == 0
    loss = loss_of(objective_of({name: 3.0}))
    assert loss.terms.keys() == {"soft", "hard", name}
    assert float(loss.terms[name]) == pytest.approx(3 * value_of(name))
    assert torch.equal(loss.total_A, without.total_A)
    torch.testing.assert_close(loss.total, without.total + loss.terms[name])
    torch.testing.assert_close(torch.stack(list(loss.terms.values())).sum(), loss.total)
    assert not any(term.requires_grad for term in loss.terms.values())


def test_all_terms_together_are_the_sum_of_each() -> None:
    loss = loss_of(objective_of(dict.fromkeys(INNER_TERMS, 0.5)))
    assert list(loss.terms) == ["soft", "hard", *INNER_TERMS]
    for name in INNER_TERMS:
        assert float(loss.terms[name]) == pytest.approx(0.5 * value_of(name))


def test_a_term_is_a_mean_over_tokens_and_pairs_in_the_unit_of_an_answer() -> None:
    squares = [
        (INNER.student.hidden[s] - INNER.teacher.hidden[t]).square().mean(dim=-1)[IS_TOKEN].mean() for s, t in PAIRS
    ]
    assert value_of("hidden_mse") == pytest.approx(B * float(torch.stack(squares).mean()))
    embeddings = (INNER.student.hidden[0] - INNER.teacher.hidden[0]).square().mean(dim=-1)[IS_TOKEN].mean()
    assert value_of("embeddings") == pytest.approx(B * float(embeddings))
    of_heads = [
        AttentionMaps().values(INNER.student.attention[s], INNER.teacher.attention[t], IS_TOKEN).mean()
        for s, t in PAIRS
    ]
    assert value_of("attention_maps") == pytest.approx(B * float(torch.stack(of_heads).mean()))


def test_the_first_token_is_that_of_each_row() -> None:
    cosines = [
        torch.nn.functional.cosine_similarity(INNER.student.hidden[s][:, 0], INNER.teacher.hidden[t][:, 0])
        for s, t in PAIRS
    ]
    # The squared distance of two vectors of length 1 is 2 - 2 cos.
    assert value_of("hidden_first") == pytest.approx(float((2 - 2 * torch.stack(cosines)).mean(dim=0).sum()), rel=1e-5)


@every_term
def test_a_term_is_zero_where_student_equals_teacher(name: str) -> None:
    student = INNER.student
    same = States(
        {0: student.hidden[0], 2: student.hidden[1], 4: student.hidden[2]},
        {2: student.attention[1], 4: student.attention[2]},
    )
    assert value_of(name, targets_of(student, same)) == pytest.approx(0, abs=1e-6)


@every_term
@pytest.mark.parametrize("padding", [float("nan"), 1e30])
def test_padding_changes_neither_the_loss_nor_its_gradient(name: str, padding: float) -> None:
    results = []
    for filling in (0.0, padding):
        student, teacher = (padded(each, filling) for each in (INNER.student, INNER.teacher))
        leaves = [each.requires_grad_() for each in student.hidden.values()]
        leaves += [getattr(each, vector).requires_grad_() for each in student.attention.values() for vector in VECTORS]
        loss = loss_of(objective_of({name: 1.0}, widths=(6, 6)), targets_of(student, teacher))
        loss.total.backward()
        results.append([loss.terms[name], *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    assert len(results[0]) == len(results[1]) > 1
    for without, with_it in zip(*results, strict=True):
        assert torch.equal(without, with_it)
        assert without.isfinite().all()


def padded(given: States, padding: float) -> States:
    """The same states with this number in all padding, as leaves."""
    return States(
        {layer: with_padding(each, padding) for layer, each in given.hidden.items()},
        {layer: changed(each, partial(with_padding, padding=padding)) for layer, each in given.attention.items()},
    )


@every_term
def test_how_rows_are_divided_changes_nothing(name: str) -> None:
    """The sums of two workers add up to that of the batch, because both have its weights."""
    together = value_of(name)
    parts = []
    for rows in (slice(0, 1), slice(1, B)):
        student, teacher = (rows_of(each, rows) for each in (INNER.student, INNER.teacher))
        own = InnerTargets(student, teacher, IS_TOKEN[rows], TOKEN_WEIGHT, ROW_WEIGHT)
        parts.append(value_of(name, own))
    assert sum(parts) == pytest.approx(together, rel=1e-5)


def rows_of(given: States, rows: slice) -> States:
    return States(
        {layer: each[rows] for layer, each in given.hidden.items()},
        {layer: changed(each, lambda vectors: vectors[rows]) for layer, each in given.attention.items()},
    )


@every_term
def test_bf16_under_autocast_is_close_to_float32(name: str) -> None:
    halves = [
        States(
            {layer: each.bfloat16() for layer, each in given.hidden.items()},
            {layer: changed(each, lambda vectors: vectors.bfloat16()) for layer, each in given.attention.items()},
        )
        for given in (INNER.student, INNER.teacher)
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(objective_of({name: 1.0}), targets_of(*halves))
    assert loss.total.dtype == torch.float32
    assert float(loss.terms[name]) == pytest.approx(value_of(name), rel=0.02)
    rounded = [
        States(
            {layer: each.float() for layer, each in given.hidden.items()},
            {layer: changed(each, lambda vectors: vectors.float()) for layer, each in given.attention.items()},
        )
        for given in halves
    ]
    assert float(loss.terms[name]) == pytest.approx(value_of(name, targets_of(*rounded)), rel=1e-6)


@pytest.mark.parametrize("name", [name for name, kind in INNER_TERMS.items() if issubclass(kind, AttentionTerm)])
def test_attention_needs_neither_equal_heads_nor_equal_widths(name: str) -> None:
    inner = targets_of(INNER.student, states(TEACHER_LAYERS, width=10, heads=3, seed=100))
    objective = objective_of({name: 1.0}, widths=(6, 10))
    assert not objective.projections
    assert float(loss_of(objective, inner).terms[name]) > 0


def test_relation_heads_are_those_of_the_settings() -> None:
    assert value_of("relations", relation_heads=2) == value_of("relations")  # as many as the teacher has
    assert value_of("relations", relation_heads=1) != pytest.approx(value_of("relations"))


# Projections ----------------------------------------------------------------------------------------------------------

WIDER = targets_of(INNER.student, states(TEACHER_LAYERS, width=10, seed=100))


@pytest.mark.parametrize(
    ("name", "projected"),
    [
        ("hidden_mse", {"1_2", "2_4"}),
        ("hidden_cosine", {"1_2", "2_4"}),
        ("hidden_first", {"1_2", "2_4"}),
        ("embeddings", {"0_0"}),
        ("attention_maps", set()),
    ],
)
def test_states_of_other_widths_are_projected(name: str, projected: set[str]) -> None:
    objective = objective_of({name: 1.0}, widths=(6, 10))
    assert set(objective.projections) == projected
    loss = loss_of(objective, WIDER)
    loss.total.backward()
    for projection in objective.projections.values():
        assert projection.weight.shape == (10, 6)
        assert projection.weight.grad.abs().max() > 0
    assert not objective_of({name: 1.0}, widths=(6, 6)).projections


def test_the_term_compares_the_projected_states() -> None:
    objective = objective_of({"embeddings": 1.0}, widths=(6, 10))
    projected_BxLxH = WIDER.student.hidden[0] @ objective.projections["0_0"].weight.detach().T
    squares = (projected_BxLxH - WIDER.teacher.hidden[0]).square().mean(dim=-1)[IS_TOKEN]
    assert float(loss_of(objective, WIDER).terms["embeddings"]) == pytest.approx(B * float(squares.mean()), rel=1e-5)


def test_a_new_projection_keeps_lengths_and_is_that_of_its_seed() -> None:
    objective = objective_of({"hidden_mse": 1.0, "embeddings": 1.0}, widths=(6, 10))
    states_BxLxH = INNER.student.hidden[1]
    for name, projection in objective.projections.items():
        torch.testing.assert_close(projection(states_BxLxH).norm(dim=-1), states_BxLxH.norm(dim=-1))
        same, other = (
            objective_of({"hidden_mse": 1.0, "embeddings": 1.0}, widths=(6, 10), seed=seed).projections[name].weight
            for seed in (0, 1)
        )
        assert torch.equal(projection.weight, same)
        assert not torch.allclose(projection.weight, other)


@pytest.mark.parametrize("settings", [{"hidden_mse": 1.0}, {"hidden_mse": 1.0, "inner_first": 0.5}])
@pytest.mark.parametrize("progress", [0.0, 0.7])
def test_every_parameter_and_output_has_a_gradient_in_every_stage(settings: dict[str, Any], progress: float) -> None:
    """DDP waits for all of them."""
    objective = objective_of(settings, widths=(6, 10))
    student_AxC, targets = outputs()
    objective(student_AxC, replace(targets, progress=progress), WIDER).total.backward()
    assert student_AxC.grad is not None
    assert all(parameter.grad is not None for parameter in objective.parameters())


# What is needed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "student", "teacher"),
    [
        ({}, Needs(), Needs()),
        (
            {"hidden_mse": 1.0},
            Needs(hidden=frozenset({1, 2})),
            Needs(hidden=frozenset({2, 4})),
        ),
        ({"embeddings": 1.0}, Needs(hidden=frozenset({0})), Needs(hidden=frozenset({0}))),
        (
            {"embeddings": 1.0, "relations": 1.0},
            Needs(frozenset({0}), frozenset({1, 2})),
            Needs(frozenset({0}), frozenset({2, 4})),
        ),
        (
            {"attention_maps_end": 1.0, "schedule": "linear"},
            Needs(attention=frozenset({1, 2})),
            Needs(attention=frozenset({2, 4})),
        ),
    ],
)
def test_only_the_layers_that_are_compared_are_needed(settings: dict[str, Any], student: Needs, teacher: Needs) -> None:
    objective = objective_of(settings)
    assert (objective.student_needs, objective.teacher_needs) == (student, teacher)
    assert bool(student) == objective.compares_layers(0.0) == bool(Distillation(**settings).inner_terms)


# Stages and schedules -------------------------------------------------------------------------------------------------


def test_the_first_stage_has_the_inner_terms_alone_and_the_second_one_has_none() -> None:
    objective = objective_of({"hidden_mse": 1.0, "relations": 1.0, "inner_first": 0.6})
    everything = loss_of(objective_of({"hidden_mse": 1.0, "relations": 1.0}))
    for progress in (0.0, 0.59):
        first = loss_of(objective, progress=progress)
        assert objective.compares_layers(progress)
        assert first.terms == {name: everything.terms[name] for name in ("hidden_mse", "relations")}
        torch.testing.assert_close(first.total, torch.stack(list(first.terms.values())).sum())
        assert first.total_A.abs().max() == 0
    for progress in (0.6, 1.0):
        assert not objective.compares_layers(progress)
        second = loss_of(objective, None, progress)
        assert set(second.terms) == {"soft", "hard"}
        assert torch.equal(second.total_A, everything.total_A)
        assert second.total == second.total_A.sum()


def test_the_head_learns_nothing_in_the_first_stage() -> None:
    student_AxC, targets = outputs()
    objective_of({"hidden_mse": 1.0, "inner_first": 0.5})(student_AxC, targets, INNER).total.backward()
    assert student_AxC.grad is not None
    assert student_AxC.grad.abs().max() == 0


@every_term
@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({"schedule": "linear"}, {0.0: 2.0, 0.5: 1.0, 1.0: 0.0}),
        ({"schedule": "cosine"}, {0.0: 2.0, 0.25: 1.7071068, 1.0: 0.0}),
        ({"schedule": "linear", "schedule_from": 0.5}, {0.5: 2.0, 0.75: 1.0}),
        ({"schedule": "linear", "inner_first": 0.5}, {0.25: 1.5}),
    ],
)
def test_the_weight_of_a_term_follows_the_schedule(
    name: str, settings: dict[str, Any], factors: dict[float, float]
) -> None:
    objective = objective_of({name: 2.0, f"{name}_end": 0.0} | settings)
    for progress, factor in factors.items():
        term = loss_of(objective, progress=progress).terms[name]
        assert float(term) == pytest.approx(factor * value_of(name), rel=1e-5, abs=1e-9)
