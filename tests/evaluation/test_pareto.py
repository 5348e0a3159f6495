"""The Pareto front has the properties of its definition."""

from hypothesis import given
from hypothesis import strategies as st

from kdray.evaluation.pareto import direction, dominates, pareto_front

OBJECTIVES = ("accuracy", "latency_ms")
points = st.lists(
    st.fixed_dictionaries({"accuracy": st.integers(0, 5).map(float), "latency_ms": st.integers(0, 5).map(float)}),
    max_size=20,
)


def test_costs_and_loss_are_minimized() -> None:
    assert {
        name: direction(name)
        for name in (
            "latency_ms",
            "multiply_adds",
            "parameters",
            "size_mb",
            "loss",
            "accuracy",
            "speedup",
            "throughput_per_s",
        )
    } == {
        "latency_ms": "minimize",
        "multiply_adds": "minimize",
        "parameters": "minimize",
        "size_mb": "minimize",
        "loss": "minimize",
        "accuracy": "maximize",
        "speedup": "maximize",
        "throughput_per_s": "maximize",
    }


@given(points)
def test_the_front_has_exactly_the_points_that_no_point_dominates(given_points: list[dict[str, float]]) -> None:
    expected = [
        index
        for index, point in enumerate(given_points)
        if not any(dominates(other, point, OBJECTIVES) for other in given_points)
    ]
    assert pareto_front(given_points, OBJECTIVES) == expected


@given(points.filter(len))
def test_each_point_off_the_front_is_dominated_by_a_point_on_it(given_points: list[dict[str, float]]) -> None:
    on_front = pareto_front(given_points, OBJECTIVES)
    assert on_front
    for index in set(range(len(given_points))) - set(on_front):
        assert any(dominates(given_points[best], given_points[index], OBJECTIVES) for best in on_front)


@given(points.filter(lambda points: len(points) > 1))
def test_no_point_dominates_itself_and_no_two_points_dominate_each_other(given_points: list[dict[str, float]]) -> None:
    one, other = given_points[:2]
    assert not dominates(one, one, OBJECTIVES)
    assert not (dominates(one, other, OBJECTIVES) and dominates(other, one, OBJECTIVES))


def test_points_without_an_objective_are_never_on_the_front() -> None:
    good = {"accuracy": 0.9, "latency_ms": 3.0}
    assert pareto_front([{"accuracy": 1.0}, good, {"accuracy": float("nan"), "latency_ms": 1.0}], OBJECTIVES) == [1]
    assert pareto_front([], OBJECTIVES) == []
