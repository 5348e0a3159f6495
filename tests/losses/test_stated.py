"""Outputs that say a mean of probabilities, or given probabilities. Shapes: A answers, C outputs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import from_numpy

from kdray.losses.distribution import Distribution
from kdray.losses.sigmoid import Sigmoid
from kdray.losses.softmax import SOFTMAX
from kdray.losses.value import Value

KINDS: dict[str, tuple[Distribution, Callable[[np.ndarray], np.ndarray]]] = {
    "softmax": (SOFTMAX, lambda outputs: from_numpy(outputs).double().softmax(-1).numpy()),
    "sigmoid": (Sigmoid(), lambda outputs: from_numpy(outputs).double().sigmoid().numpy()),
    "value": (Value(3.0, 2.0), lambda outputs: outputs.astype(np.float64)),
}
"""Kind of outputs -> its distribution, and what outputs say."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]


def random_outputs(seed: int) -> np.ndarray:
    return (5 * np.random.default_rng(seed).standard_normal((40, 3))).astype(np.float32)


def test_the_mean_is_that_of_what_the_outputs_say(kind: Any) -> None:
    distribution, said = kind
    outputs, weights = [random_outputs(seed) for seed in range(3)], [0.5, 0.3, 0.2]
    mean_AxC = distribution.mean_outputs(outputs, weights)
    expected_AxC = sum(weight * said(each) for weight, each in zip(weights, outputs, strict=True))
    assert mean_AxC.dtype == np.float32
    assert said(mean_AxC) == pytest.approx(expected_AxC, abs=1e-6)


def test_the_mean_of_one_and_the_same_model_says_the_same(kind: Any) -> None:
    distribution, said = kind
    # So far from 0 that a probability would be 1 or 0 in float32.
    outputs_AxC = 20 * random_outputs(0)
    mean_AxC = distribution.mean_outputs([outputs_AxC] * 3, [1 / 3] * 3)
    assert np.isfinite(mean_AxC).all()
    assert said(mean_AxC) == pytest.approx(said(outputs_AxC), rel=1e-3, abs=1e-12)
    if distribution is not SOFTMAX:  # a softmax does not change with a constant
        assert mean_AxC == pytest.approx(outputs_AxC, rel=1e-5)


def test_outputs_say_the_probabilities_that_are_given(kind: Any) -> None:
    distribution, said = kind
    stated_AxC = said(random_outputs(1))
    assert distribution.problem_of(stated_AxC) is None
    assert said(distribution.outputs_stating(stated_AxC, 1e-9)) == pytest.approx(stated_AxC, abs=1e-6)


@pytest.mark.parametrize("distribution", [SOFTMAX, Sigmoid()])
def test_a_probability_of_0_is_the_floor(distribution: Distribution) -> None:
    outputs_AxC = distribution.outputs_stating(np.array([[0.0, 1.0]]), 1e-4)
    assert np.isfinite(outputs_AxC).all()
    assert outputs_AxC[0, 0] == pytest.approx(np.log(1e-4), rel=1e-4)


@pytest.mark.parametrize(
    ("distribution", "answer", "problem"),
    [
        (SOFTMAX, [0.5, 0.6], "add up to 1.1"),
        (SOFTMAX, [0.5, np.nan], "nan is no probability"),
        (SOFTMAX, [1.5, -0.5], "1.5 is no probability"),
        (SOFTMAX, [0.33, 0.665], None),  # rounded
        (Sigmoid(), [0.9, 0.8], None),
        (Sigmoid(), [0.9, 1.2], "1.2 is no probability"),
        (Value(0, 1), [np.inf], "inf is no finite number"),
        (Value(0, 1), [-700.5], None),
    ],
)
def test_the_first_wrong_answer_is_found(distribution: Distribution, answer: list[float], problem: str | None) -> None:
    stated_AxC = np.full((3, len(answer)), 1 / len(answer))
    stated_AxC[1:] = answer
    found = distribution.problem_of(stated_AxC)
    assert (found is None) == (problem is None)
    if found is not None and problem is not None:
        assert found[0] == 1
        assert problem in found[1]


def test_labels_that_are_not_listed() -> None:
    listed_AxC = np.array([[0.6, np.nan, np.nan], [0.2, 0.3, 0.5]])
    assert SOFTMAX.with_unlisted(listed_AxC) == pytest.approx(np.array([[0.6, 0.2, 0.2], [0.2, 0.3, 0.5]]))
    assert Sigmoid().with_unlisted(listed_AxC) == pytest.approx(np.array([[0.6, 0.0, 0.0], [0.2, 0.3, 0.5]]))
