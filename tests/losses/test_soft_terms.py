"""The ways in which the soft loss compares: each against a reference in numpy, and properties that all of them have.

Shapes: A answers, C outputs, K outcomes of which exactly one occurs.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdray.choice.reruns import Rerun
from kdray.errors import SpecError
from kdray.losses.comparison import Comparison
from kdray.losses.distillation import Distillation, Targets
from kdray.losses.distribution import Distribution
from kdray.losses.sigmoid import Sigmoid
from kdray.losses.soft_terms import SOFT_TERMS, TERM_SETTINGS
from kdray.losses.softmax import SOFTMAX
from kdray.settings import identifying_values
from kdray.training.trial import Recipe
from tests.losses.comparing import soft_loss, term_named

A, C = 6, 4
LOGITS = arrays(np.float64, (A, C), elements=st.floats(-8, 8))
TEMPERATURES = st.floats(0.5, 8)
SIGMOID = Sigmoid()
CLASSES = torch.tensor([0, 1, 2, 3, 0, -1])
LABELS = (torch.arange(A * C).reshape(A, C) % 3 == 0).long()

KINDS: dict[str, tuple[Distribution, torch.Tensor]] = {"softmax": (SOFTMAX, CLASSES), "sigmoid": (SIGMOID, LABELS)}
CASES = [
    (soft, kind) for soft, term in SOFT_TERMS.items() for kind in KINDS if not KINDS[kind][0].problem_of_term(term)
]
every_case = pytest.mark.parametrize(("soft", "kind"), CASES)


def random_logits(seed: int = 0, dtype: Any = np.float64) -> list[torch.Tensor]:
    """The logits of a student and of a teacher."""
    return list(torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (2, A, C)).astype(dtype)))


def loss_of(options: Distillation, student: torch.Tensor, teacher: torch.Tensor, kind: str) -> torch.Tensor:
    """The loss of each answer (A)."""
    distribution, gold = KINDS[kind]
    return options.loss(student, Targets(gold, teacher), distribution).total_A


# References -----------------------------------------------------------------------------------------------------------


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def outcomes(logits: np.ndarray, kind: str) -> np.ndarray:
    """Probabilities that add up to 1 over the last dimension: A x 1 x C of classes, A x C x 2 of labels."""
    if kind == "softmax":
        return softmax(logits)[:, None]
    yes = 1 / (1 + np.exp(-logits))
    return np.stack([yes, 1 - yes], axis=-1)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(axis=-1)


def divergence(formula: Callable[[np.ndarray, np.ndarray], np.ndarray], power: int) -> Callable[..., np.ndarray]:
    """The reference of a term that is a sum over outcomes."""

    def reference(student: np.ndarray, teacher: np.ndarray, temperature: float, kind: str) -> np.ndarray:
        s, t = (outcomes(logits / temperature, kind) for logits in (student, teacher))
        return temperature**power * formula(s, t).mean(axis=1)

    return reference


def jsd(s: np.ndarray, t: np.ndarray) -> np.ndarray:
    mixture = 0.3 * t + 0.7 * s
    return 0.3 * kl(t, mixture) + 0.7 * kl(s, mixture)


def mse(student: np.ndarray, teacher: np.ndarray, temperature: float, kind: str) -> np.ndarray:
    return ((student - teacher) ** 2).mean(axis=1)


def dkd(student: np.ndarray, teacher: np.ndarray, temperature: float, kind: str) -> np.ndarray:
    """One answer at a time; the target is the gold class, or the teacher's most probable one."""
    terms = []
    for row in range(A):
        target = int(CLASSES[row]) if CLASSES[row] >= 0 else int(teacher[row].argmax())
        (s, s_others), (t, t_others) = (
            (softmax(logits[row] / temperature), softmax(np.delete(logits[row], target) / temperature))
            for logits in (student, teacher)
        )
        of_target = kl(np.array([t[target], 1 - t[target]]), np.array([s[target], 1 - s[target]]))
        terms.append(temperature**2 * (0.5 * of_target + 3.0 * kl(t_others, s_others)))
    return np.array(terms)


def dist(student: np.ndarray, teacher: np.ndarray, temperature: float, kind: str) -> np.ndarray:
    s, t = (outcomes(logits / temperature, kind) for logits in (student, teacher))
    s, t = (p[:, 0] if kind == "softmax" else p[:, :, 0] for p in (s, t))
    within_answers = np.array([1 - np.corrcoef(s[row], t[row])[0, 1] for row in range(A)])
    within_classes = np.mean([1 - np.corrcoef(s[:, output], t[:, output])[0, 1] for output in range(C)])
    return np.asarray(2.0 * within_answers + 0.7 * within_classes)


REFERENCES: dict[str, tuple[Callable[..., np.ndarray], dict[str, float]]] = {
    "kl": (divergence(lambda s, t: kl(t, s), 2), {}),
    "reverse_kl": (divergence(kl, 2), {}),
    "jsd": (divergence(jsd, 2), {"jsd_beta": 0.3}),
    "tvd": (divergence(lambda s, t: np.abs(s - t).sum(axis=-1) / 2, 1), {}),
    "mse": (mse, {}),
    "dkd": (dkd, {"dkd_alpha": 0.5, "dkd_beta": 3.0}),
    "dist": (dist, {"dist_beta": 2.0, "dist_gamma": 0.7}),
}
"""The name of a term -> its reference, and the settings that are in it."""


@every_case
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_each_term_equals_its_reference(soft: str, kind: str, temperature: float) -> None:
    reference, own = REFERENCES[soft]
    student, teacher = random_logits()
    options = Distillation(soft=soft, alpha=1.0, temperature=temperature, **own)
    expected_A = reference(student.numpy(), teacher.numpy(), temperature, kind)
    np.testing.assert_allclose(loss_of(options, student, teacher, kind), expected_A, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("soft", list(SOFT_TERMS))
def test_standardised_logits_equal_the_reference(soft: str) -> None:
    reference, own = REFERENCES[soft]
    student, teacher = random_logits(1)
    options = Distillation(soft=soft, alpha=1.0, temperature=2.0, standardize=True, **own)
    scores = [
        (logits - logits.mean(axis=1, keepdims=True)) / logits.std(axis=1, ddof=1, keepdims=True)
        for logits in (student.numpy(), teacher.numpy())
    ]
    expected_A = reference(*scores, 2.0, "softmax")
    np.testing.assert_allclose(loss_of(options, student, teacher, "softmax"), expected_A, rtol=1e-4, atol=1e-6)


# Properties of all terms ----------------------------------------------------------------------------------------------


@every_case
@settings(max_examples=30)
@given(LOGITS, LOGITS, TEMPERATURES)
def test_a_term_is_zero_for_equal_models_and_never_negative(
    soft: str, kind: str, student: np.ndarray, teacher: np.ndarray, temperature: float
) -> None:
    distribution, term = KINDS[kind][0], term_named(soft)
    student_AxC, teacher_AxC = torch.from_numpy(student), torch.from_numpy(teacher)
    assert soft_loss(distribution, student_AxC, student_AxC, temperature, term).abs().max() < 1e-12
    assert soft_loss(distribution, student_AxC, teacher_AxC, temperature, term).min() > -1e-9


@every_case
@pytest.mark.parametrize("standardize", [False, True])
def test_the_gradient_is_right(soft: str, kind: str, standardize: bool) -> None:
    """Compared with differences of the term, in float64."""
    (distribution, gold), term = KINDS[kind], term_named(soft)
    student, teacher = random_logits(2)

    def term_of(logits: torch.Tensor) -> torch.Tensor:
        comparison = Comparison(logits, teacher, 2.0, gold, weights=torch.linspace(0.2, 1, A)[:, None])
        return distribution.soft_loss(comparison.standardized() if standardize else comparison, term)

    assert torch.autograd.gradcheck(term_of, student.requires_grad_())


@every_case
def test_the_size_of_the_gradient_is_similar_at_all_temperatures(soft: str, kind: str) -> None:
    """It goes to a limit as the temperature grows, and the limit is not 0."""
    sizes = []
    for temperature in (50.0, 500.0):
        student, teacher = random_logits(3)
        soft_loss(KINDS[kind][0], student.requires_grad_(), teacher, temperature, term_named(soft)).sum().backward()
        assert student.grad is not None
        sizes.append(float(student.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)
    assert sizes[1] > 1e-2


@every_case
@settings(max_examples=20)
@given(LOGITS, LOGITS, st.permutations(range(A)), st.permutations(range(C)))
def test_neither_the_order_of_answers_nor_that_of_outputs_matters(
    soft: str, kind: str, student: np.ndarray, teacher: np.ndarray, rows: list[int], outputs: list[int]
) -> None:
    (distribution, gold), term = KINDS[kind], term_named(soft)
    known = gold.clamp(min=0)
    logits = [torch.from_numpy(each) for each in (student, teacher)]
    moved = [each[rows][:, outputs] for each in logits]
    moved_gold = known[rows][:, outputs] if kind == "sigmoid" else torch.tensor(outputs).argsort()[known[rows]]
    torch.testing.assert_close(
        distribution.soft_loss(Comparison(*moved, 2.0, moved_gold), term),
        distribution.soft_loss(Comparison(*logits, 2.0, known), term)[rows],
    )


@every_case
def test_other_answers_change_nothing_unless_the_term_relates_them(soft: str, kind: str) -> None:
    distribution = KINDS[kind][0]
    student, teacher = random_logits(4)
    alone = {"dist_gamma": 0.0} if soft == "dist" else {}
    term = term_named(soft, **alone)
    beside = soft_loss(distribution, student, teacher, 2.0, term)[:2]
    torch.testing.assert_close(soft_loss(distribution, student[:2], teacher[:2], 2.0, term), beside)
    related = soft_loss(distribution, student, teacher, 2.0, term_named("dist"))[:2]
    assert not torch.allclose(soft_loss(distribution, student[:2], teacher[:2], 2.0, term_named("dist")), related)


@every_case
def test_half_precision_is_computed_in_float32_and_is_close_to_it(soft: str, kind: str) -> None:
    student, teacher = random_logits(5, np.float32)
    half = student.bfloat16().requires_grad_()
    options = Distillation(soft=soft, alpha=1.0, temperature=2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_A = loss_of(options, half, teacher, kind)
    assert loss_A.dtype == torch.float32
    torch.testing.assert_close(loss_A, loss_of(options, student, teacher, kind), rtol=0.05, atol=0.05)
    loss_A.sum().backward()
    assert half.grad is not None
    assert half.grad.isfinite().all()


@every_case
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("size", [0.0, 3e4])
def test_extreme_logits_have_finite_losses_and_gradients(soft: str, kind: str, size: float, standardize: bool) -> None:
    student, teacher = (size * logits.sign() for logits in random_logits(6, np.float32))
    student.requires_grad_()
    options = Distillation(soft=soft, alpha=1.0, temperature=0.5, standardize=standardize)
    loss_A = loss_of(options, student, teacher, kind)
    loss_A.sum().backward()
    assert student.grad is not None
    assert loss_A.isfinite().all()
    assert student.grad.isfinite().all()


@every_case
@pytest.mark.parametrize("trust", [0.0, 0.4])
def test_each_term_counts_as_much_as_it_is_trusted(soft: str, kind: str, trust: float) -> None:
    """A teacher that is always wrong: its term is multiplied by trust, and the hard term has what is left."""
    distribution, gold = KINDS[kind]
    student, _ = random_logits(7, np.float32)
    known = gold.clamp(min=0)
    teacher = (known == 0) * 4.0 - 2.0 if kind == "sigmoid" else -4.0 * torch.nn.functional.one_hot(known, C)
    teacher = teacher + 0.01 * torch.arange(C)
    assert distribution.contradicts(teacher, known).all()
    full, less = (
        Distillation(soft=soft, alpha=1.0, trust=share).loss(student, Targets(known, teacher), distribution).terms
        for share in (1.0, trust)
    )
    torch.testing.assert_close(less["soft"], trust * full["soft"])
    torch.testing.assert_close(less["hard"], (1 - trust) * distribution.hard_loss(student, known).sum())


def test_a_mistake_that_is_not_trusted_is_in_no_relation() -> None:
    """The correlations are those of the other answers."""
    student, teacher = random_logits(8, np.float32)
    teacher = torch.where(torch.nn.functional.one_hot(CLASSES.clamp(min=0), C).bool(), 5.0, teacher)
    teacher[1] = torch.tensor([9.0, 0, 0, 0])
    options = Distillation(soft="dist", alpha=1.0, trust=0.0)
    others = [0, 2, 3, 4, 5]
    with_mistake = options.loss(student, Targets(CLASSES, teacher), SOFTMAX).total_A[others]
    alone = options.loss(student[others], Targets(CLASSES[others], teacher[others]), SOFTMAX).total_A
    torch.testing.assert_close(with_mistake, alone)


# Properties of single terms -------------------------------------------------------------------------------------------


def test_a_small_beta_makes_jsd_the_divergence_from_the_teacher_and_a_large_one_that_from_the_student() -> None:
    logits = random_logits(9)
    for beta, factor, other in ((1e-6, 1e-6, "kl"), (1 - 1e-6, 1e-6, "reverse_kl")):
        jsd_A = soft_loss(SOFTMAX, *logits, 2.0, term_named("jsd", jsd_beta=beta))
        expected_A = soft_loss(SOFTMAX, *logits, 2.0, term_named(other))
        torch.testing.assert_close(jsd_A / factor, expected_A, rtol=1e-3, atol=1e-3)


def test_dkd_with_the_share_of_the_others_as_beta_is_kl() -> None:
    """The identity that the paper derives dkd from, with one beta for each answer."""
    student, teacher = random_logits(10)
    rest_A = 1 - (teacher / 2.0).softmax(dim=-1).amax(dim=-1)
    each_A = [
        soft_loss(SOFTMAX, student[row : row + 1], teacher[row : row + 1], 2.0, term_named("dkd", dkd_beta=float(rest)))
        for row, rest in enumerate(rest_A)
    ]
    torch.testing.assert_close(torch.cat(each_A), soft_loss(SOFTMAX, student, teacher, 2.0))


def test_at_two_classes_dkd_is_kl_whatever_beta_is() -> None:
    student, teacher = (logits[:, :2] for logits in random_logits(11))
    for beta in (0.0, 8.0):
        dkd_A = soft_loss(SOFTMAX, student, teacher, 2.0, term_named("dkd", dkd_beta=beta))
        torch.testing.assert_close(dkd_A, soft_loss(SOFTMAX, student, teacher, 2.0))


def test_labels_have_no_dkd() -> None:
    with pytest.raises(SpecError, match=r"distillation\.soft: got 'dkd'; a label holds or does not hold"):
        soft_loss(SIGMOID, *random_logits(), 2.0, term_named("dkd"))


def test_dist_does_not_change_if_all_probabilities_move_to_their_mean() -> None:
    """Correlations have no scale: halving each distance to 1 / C changes nothing."""
    teacher = random_logits(12)[1]
    student = (0.5 * teacher.softmax(dim=-1) + 0.5 / C).log()
    assert soft_loss(SOFTMAX, student, teacher, 1.0, term_named("dist")).abs().max() < 1e-6
    assert soft_loss(SOFTMAX, student, teacher, 1.0).min() > 1e-3


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (
            {"soft": "dk"},
            "Distillation.soft: got 'dk'; did you mean 'dkd'? Allowed: kl, reverse_kl, jsd, tvd, mse, dkd",
        ),
        ({"soft": 3}, "Distillation.soft: got 3"),
        ({"jsd_beta": 0.0}, "Distillation.jsd_beta: got 0"),
        ({"jsd_beta": 1.0}, "Distillation.jsd_beta: got 1"),
        ({"dkd_beta": -1}, "Distillation.dkd_beta: got -1"),
        ({"dist_gamma": float("nan")}, "Distillation.dist_gamma: got nan"),
        ({"standardize": "no way"}, "Distillation.standardize: got 'no way'"),
    ],
)
def test_values_outside_the_limits_are_refused(values: dict[str, Any], part: str) -> None:
    with pytest.raises(SpecError) as caught:
        Distillation(**values)
    assert part in str(caught.value)


def test_the_settings_of_the_terms_are_settings_of_the_loss() -> None:
    assert set(Distillation.model_fields) >= TERM_SETTINGS
    assert set(Distillation.model_fields) >= SOFTMAX.settings > SIGMOID.settings
    for soft in SOFT_TERMS:
        assert Distillation(soft=soft).soft_term.name == soft


def test_the_documents_have_every_term_and_every_setting() -> None:
    text = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`.*\| (yes|no) \| (yes|no)\b[^|]*\|$", text, re.MULTILINE)
    assert rows == [
        (soft, "yes" if term.fewest_outputs == 3 else "no", "no" if term.why_not_labels else "yes")
        for soft, term in SOFT_TERMS.items()
    ]
    settings_of_loss = set(Distillation.model_fields) - {"trust", "logit_mse"}
    assert not [name for name in settings_of_loss if f"distillation.{name}" not in text]


def test_other_terms_are_written_and_the_default_is_not() -> None:
    """The key is that of version 0.1."""
    default = Recipe().with_dotted({"distillation.soft": "kl", "distillation.jsd_beta": 0.5})
    assert Rerun(trial=0, role="candidate", seed=1, recipe=default).key == "80d2d4512fa129b2"
    written = identifying_values(Distillation(soft="dist", dist_gamma=2.0))
    assert {"soft": "dist", "dist_gamma": 2.0}.items() <= written.items()
    assert Distillation(**written) == Distillation(soft="dist", dist_gamma=2.0)


def test_a_control_with_labels_only_is_the_same_training_whatever_the_term_is() -> None:
    """The key is that of version 0.1."""
    other = {"soft": "dkd", "dkd_beta": 2.0, "standardize": True}
    schedule = {"schedule": "linear", "alpha_end": 0.1, "temperature_end": 1.0, "schedule_to": 0.5}
    for values in (other, schedule, other | schedule):
        distillation = Distillation(temperature=4.0, alpha=0.7, logit_mse=0.1, **values).labels_only()
        key = Rerun(trial=0, role="labels only", seed=1, recipe=Recipe(distillation=distillation)).key
        assert key == "dfe014eab5eba9e3"
