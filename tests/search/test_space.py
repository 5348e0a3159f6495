"""The space: its checks, its conversion to Optuna and back, and its architectures."""

import pytest
from pydantic import Field
from ray import tune

from kdray.errors import SpecError
from kdray.search.space import SearchSpace, distributions, domains, end_values
from kdray.settings import Settings


class Student(Settings):
    depth: int = Field(2, ge=1, le=6)
    layers: str = "evenly"
    dropout: float = 0.1


class Training(Settings):
    learning_rate: float = Field(1e-4, gt=0)


class Recipe(Settings):
    student: Student = Student()
    training: Training = Training()
    alpha: float = Field(0.5, ge=0, le=1)


def refusal(space: dict) -> str:
    with pytest.raises(SpecError) as caught:
        SearchSpace.checked(space, Recipe())
    return str(caught.value)


def test_a_good_space_passes() -> None:
    SearchSpace.checked(
        {
            "student.depth": [1, 2, 6],
            "training.learning_rate": tune.loguniform(1e-5, 1e-3),
            "alpha": tune.uniform(0, 1),
        },
        Recipe(),
    )


def test_an_unknown_name_is_refused_with_the_nearest_name() -> None:
    message = refusal({"student.dept": [1]})
    assert message.startswith("space['student.dept']: no such setting; did you mean 'student.depth'?")


@pytest.mark.parametrize(
    ("name", "domain", "end"),
    [
        ("student.depth", tune.randint(0, 4), "0"),
        ("student.depth", [1, 7], "7"),
        ("alpha", tune.uniform(0.2, 1.2), "1.2"),
        ("training.learning_rate", tune.uniform(0.0, 1e-3), "0.0"),
    ],
)
def test_an_end_that_is_not_allowed_is_named(name: str, domain: object, end: str) -> None:
    message = refusal({name: domain})
    assert message.startswith(f"space['{name}']: {end} is not allowed. {name}: got {end}")


@pytest.mark.parametrize(
    ("domain", "part"),
    [
        (0.5, "A fixed value is a setting"),
        ({"grid_search": [1, 2]}, "use a list of its values"),
        (tune.randn(0, 1), "Optuna cannot draw from"),
        (tune.uniform(1, 0), "Optuna cannot draw from"),
        ([], "got no values"),
        ([(1, 2)], "got (1, 2)"),
    ],
)
def test_an_invalid_domain_is_refused_with_a_remedy(domain: object, part: str) -> None:
    message = refusal({"alpha": domain})
    assert message.startswith("space['alpha']: ")
    assert part in message


def test_end_values_of_each_kind_of_domain() -> None:
    space = {"a": tune.randint(1, 4), "b": tune.loguniform(1e-5, 1e-3), "c": ["x", None], "d": tune.qrandint(2, 8, 2)}
    assert {name: end_values(d) for name, d in distributions(space).items()} == {
        "a": (1, 3),
        "b": (1e-5, 1e-3),
        "c": ("x", None),
        "d": (2, 8),
    }


def test_architectures_are_all_combinations_of_the_settings_that_shape_the_student() -> None:
    space = {"student.depth": tune.randint(1, 3), "student.layers": ["first", "last"], "alpha": tune.uniform(0, 1)}
    assert SearchSpace({**space, "student.dropout": tune.uniform(0, 0.5)}).architectures() == (
        {"student.depth": 1, "student.layers": "first"},
        {"student.depth": 1, "student.layers": "last"},
        {"student.depth": 2, "student.layers": "first"},
        {"student.depth": 2, "student.layers": "last"},
    )
    assert SearchSpace({"alpha": [0, 1]}).architectures() == ({},)
    assert SearchSpace({"student.width": tune.quniform(0.5, 1.0, 0.25)}).architectures() == tuple(
        {"student.width": width} for width in (0.5, 0.75, 1.0)
    )


def test_too_many_architectures_are_refused() -> None:
    with pytest.raises(SpecError, match="infinitely many architectures"):
        SearchSpace({"student.width": tune.uniform(0.1, 1)}).architectures()
    with pytest.raises(SpecError, match="make 300 architectures; at most 256"):
        SearchSpace({"student.a": tune.randint(0, 30), "student.b": tune.randint(0, 10)}).architectures()


@pytest.mark.parametrize(
    "domain",
    [
        [1, 2, 6],
        tune.choice(["a", None]),
        tune.uniform(0.1, 0.9),
        tune.loguniform(1e-5, 1e-3),
        tune.randint(1, 7),
        tune.quniform(0.0, 0.5, 0.1),
        tune.lograndint(1, 64),
        tune.qrandint(2, 8, 2),
    ],
)
def test_domains_inverts_distributions(domain: object) -> None:
    expected = distributions({"alpha": domain})
    assert distributions(domains(expected)) == expected
