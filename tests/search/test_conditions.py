"""Spaces in which a trial has the settings of its kind only."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from ray import tune

from kdray.errors import SpecError
from kdray.search.ledger import Ledger
from kdray.search.planner import Planner
from kdray.search.sampling import CONDITIONAL
from kdray.search.settings import Search, at_most
from kdray.search.space import SearchSpace
from kdray.settings import Settings


class Shape(Settings):
    kind_field: ClassVar[str] = "family"

    family: str
    depth: int = 1


class Wide(Shape):
    family: Literal["wide"] = "wide"
    width: int = 8


class Tall(Shape):
    family: Literal["tall"] = "tall"
    height: float = 1.0
    roof: Literal["flat", "steep"] = "flat"


class Plain(Shape):
    family: Literal["plain"] = "plain"


Shape.kinds = {"wide": Wide, "tall": Tall, "plain": Plain}


class Trial(Settings):
    student: Shape = Wide()
    rate: float = 0.1


SPACE: dict[str, Any] = {
    "rate": tune.uniform(0, 1),
    "student.depth": [1, 2],
    "student.width": [8, 16, 32],
    "student.family": ["wide", "tall", "plain"],
    "student.roof": ["flat", "steep"],
}
HAS = {
    "wide": ["rate", "student.depth", "student.width", "student.family"],
    "tall": ["rate", "student.depth", "student.family", "student.roof"],
    "plain": ["rate", "student.depth", "student.family"],
}
"""The searched settings of each family, in the order of the space."""


def checked(space: Mapping[str, Any] = SPACE, student: Shape | None = None) -> SearchSpace:
    return SearchSpace.checked(space, Trial(student=student or Wide()))


def test_a_trial_has_the_settings_of_its_family() -> None:
    space = checked()
    assert space.conditions.are_any
    assert {
        family: space.conditions.names({"student.family": family}, SPACE) for family in ("wide", "tall", "plain")
    } == HAS


def test_without_a_family_in_the_space_all_trials_have_all_settings() -> None:
    space = checked({"student.depth": [1, 2], "student.width": [8]})
    assert not space.conditions.are_any
    only = checked({"student.depth": [1, 2], "student.family": ["wide"], "student.width": [8]})
    assert not only.conditions.are_any


def test_no_architecture_is_counted_twice() -> None:
    shapes = checked().architectures()
    assert len(shapes) == len({tuple(shape.items()) for shape in shapes}) == 2 * 3 + 2 * 2 + 2
    assert all(
        [name for name in HAS[shape["student.family"]] if name.startswith("student.")] == list(shape)
        for shape in shapes
    )


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"student.family": ["wide", "tal"]}, "space['student.family']: 'tal' is not allowed."),
        ({"student.family": ["wide", "tal"]}, "did you mean 'tall'?"),
        ({"student.family": ["wide", "plain"], "student.roof": ["flat"]}, "space['student.roof']: no such setting"),
        ({"student.roof": ["flat"]}, "space['student.roof']: no such setting"),
        ({"student.family": ["wide", "tall"], "student.roof": ["flt"]}, "space['student.roof']: 'flt' is not allowed."),
        ({"student.family": [7]}, "space['student.family']: 7 is not allowed."),
    ],
)
def test_settings_that_no_trial_has_are_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        checked(space)
    assert message in str(caught.value)


def make_planner(folder: Path, search: Search, costs: Callable[[Mapping[str, Any]], dict[str, float]]) -> Planner:
    return Planner(search, checked(), Ledger.open(folder / "journal", "sweep", search.objectives), costs)


def size(params: Mapping[str, Any]) -> dict[str, float]:
    return {"latency_ms": float(params["student.depth"] * params.get("student.width", 4))}


def run(planner: Planner, count: int) -> list[dict[str, Any]]:
    drawn = []
    for _ in range(count):
        trial = planner.next_trial()
        assert trial is not None
        drawn.append(trial.params)
        quality = trial.params["rate"] + ("student.roof" in trial.params)
        planner.observe(trial.number, {"accuracy": quality, "epoch": 1})
        planner.finish(trial.number, "completed")
    return drawn


@pytest.mark.parametrize("sampler", CONDITIONAL)
def test_settings_that_a_family_lacks_are_not_drawn(tmp_path: Path, sampler: Any) -> None:
    search = Search(trials=60, sampler=sampler, objectives=("accuracy", "latency_ms"), stopping=None)
    drawn = run(make_planner(tmp_path, search, size), 60)
    assert {params["student.family"] for params in drawn} == set(HAS)
    assert all(list(params) == HAS[params["student.family"]] for params in drawn)
    assert [record.params for record in Ledger.read(tmp_path / "journal", "sweep").records()] == drawn


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_search_continues_with_the_draws_that_it_would_have_made(tmp_path: Path, sampler: Any) -> None:
    search = Search(trials=30, sampler=sampler, objectives=("accuracy", "latency_ms"), stopping=None)
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = run(make_planner(tmp_path / "whole", search, size), 30)
    parts = run(make_planner(tmp_path / "parts", search, size), 14)
    parts += run(make_planner(tmp_path / "parts", search, size), 16)
    assert parts == whole


def test_constraints_are_kept_and_families_without_an_allowed_architecture_are_not_drawn(tmp_path: Path) -> None:
    search = Search(trials=40, objectives=("accuracy",), constraints={"latency_ms": at_most(8)}, stopping=None)

    def costs(params: Mapping[str, Any]) -> dict[str, float]:
        return {"latency_ms": 100.0} if params["student.family"] == "tall" else size(params)

    drawn = run(make_planner(tmp_path, search, costs), 40)
    assert {params["student.family"] for params in drawn} == {"wide", "plain"}
    assert all(size(params)["latency_ms"] <= 8 for params in drawn)
