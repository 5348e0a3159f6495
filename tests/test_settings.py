"""Errors of settings name the setting by its dotted name; a change makes a copy and leaves the original."""

import math
from typing import Any

import pytest
from pydantic import Field, model_validator

from kdray.errors import SpecError
from kdray.settings import Names, Settings, dotted_values, parse_value


class Inner(Settings):
    temperature: float = Field(2.0, gt=0)
    alpha: float = Field(0.5, ge=0, le=1)


class Outer(Settings):
    inner: Inner = Inner()
    optional: Inner | None = None
    names: Names = ("a", "b")
    limits: dict[str, Any] = Field({})
    epochs: int = 3
    name: str

    @model_validator(mode="after")
    def _refuse_thirteen(self) -> "Outer":
        if self.epochs == 13:
            raise ValueError("Outer.epochs: 13 is not allowed.")
        return self


OUTER = Outer(name="x")


def error_message(changes: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as caught:
        OUTER.with_dotted(changes)
    return str(caught.value)


def test_dotted_values_has_every_setting_once() -> None:
    assert dotted_values(OUTER) == {
        "inner.temperature": 2.0,
        "inner.alpha": 0.5,
        "optional": None,
        "names": ("a", "b"),
        "limits": {},
        "epochs": 3,
        "name": "x",
    }


def test_with_dotted_leaves_the_original() -> None:
    changed = OUTER.with_dotted({"inner.alpha": 1, "inner.temperature": 4, "names": "c, d", "limits.latency": 5})
    assert (changed.inner, changed.names, changed.limits) == (Inner(alpha=1, temperature=4), ("c", "d"), {"latency": 5})
    assert Outer(name="x") == OUTER
    with pytest.raises(ValueError, match="frozen"):
        OUTER.epochs = 4


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"inner.alfa": 0.5}, ["inner.alfa: no such setting", "did you mean 'inner.alpha'?", "inner.temperature"]),
        ({"iner.alpha": 0.5}, ["iner.alpha: no such setting", "did you mean 'inner.alpha'?"]),
        ({"epochs.many": 1}, ["epochs.many: no such setting"]),
        ({"inner.alpha": 1.2}, ["inner.alpha: got 1.2", "less than or equal to 1"]),
        ({"inner.temperature": 0}, ["inner.temperature: got 0", "greater than 0"]),
        ({"inner.temperature": math.nan}, ["inner.temperature: got nan", "finite"]),
        ({"inner.alpha": -1, "inner.temperature": 0}, ["inner.alpha: got -1", "inner.temperature: got 0"]),
        ({"epochs": "many"}, ["epochs: got 'many'", "integer"]),
        ({"epochs": 13}, ["epochs: 13 is not allowed"]),
        ({"optional": {"alfa": 1}}, ["optional: Inner.alfa: no such setting", "did you mean 'alpha'?"]),
        ({"optional": {"alpha": 2}}, ["optional", "alpha: got 2"]),
    ],
)
def test_error_names_setting_value_and_rule(changes: dict[str, Any], parts: list[str]) -> None:
    message = error_message(changes)
    assert all(part in message for part in parts), message
    assert "validation error" not in message  # pydantic's own heading


def test_error_of_a_constructor_names_the_class() -> None:
    with pytest.raises(SpecError, match=r"Inner\.alfa: no such setting; did you mean 'alpha'\? Allowed: alpha, temp"):
        Inner(alfa=1)
    with pytest.raises(SpecError, match=r"Outer\.name: must be given\."):
        Outer()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("3", 3),
        ("true", True),
        ("null", None),
        ("None", None),
        ("none", "none"),
        ("[1, 2]", [1, 2]),
        ("a,b", "a,b"),
        ("google-bert/bert", "google-bert/bert"),
        ('"7"', "7"),
        ("", ""),
    ],
)
def test_parse_value(text: str, value: Any) -> None:
    assert parse_value(text) == value
