"""Which searched settings a trial has: all of them, or those of the kinds that it has drawn.

If the space has `student.family`, a trial of one family has no setting of another one: such a setting is not drawn, is
no param of the trial, and makes no further architecture.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from kdray.errors import SpecError
from kdray.settings import Settings, dotted_values


@dataclass(frozen=True)
class Conditions:
    """Which of the searched settings a trial lacks."""

    deciding: tuple[str, ...] = ()
    """The searched settings that decide it, such as `student.family`; they are drawn first."""
    missing: Mapping[tuple[Any, ...], frozenset[str]] = field(default_factory=dict)
    """The values of `deciding` -> the searched settings that a trial with these values does not have."""

    @property
    def are_any(self) -> bool:
        """Whether there is a trial that lacks a setting."""
        return any(self.missing.values())

    def names(self, params: Mapping[str, Any], names: Iterable[str]) -> list[str]:
        """Those of `names` that a trial has whose settings are `params`, in their order."""
        missing = self.missing.get(tuple(params.get(name) for name in self.deciding), frozenset())
        return [name for name in names if name not in missing]


UNCONDITIONAL = Conditions()
"""Every trial has all settings."""


def conditions_of(names: Iterable[str], kinds: Mapping[str, tuple[Any, ...]], recipe: Settings) -> Conditions:
    """The conditions of a space with these names; `kinds` are the values of those that decide.

    `recipe` has all settings of a trial before the searched ones are applied. Raises SpecError for a value that names
    no kind.
    """
    names, missing = list(names), {}
    for values in product(*kinds.values()):
        try:
            known = dotted_values(recipe.with_dotted(dict(zip(kinds, values, strict=True))))
        except SpecError as error:
            raise SpecError(f"space[{next(iter(kinds))!r}]: {values[0]!r} is not allowed. {error}") from None
        missing[values] = frozenset(name for name in names if name not in known)
    return Conditions(tuple(kinds), missing)


def decides(recipe: Settings, name: str) -> bool:
    """Whether the setting with this dotted name says of which kind its group of settings is."""
    *groups, last = name.split(".")
    settings: Any = recipe
    for group in groups:
        settings = getattr(settings, group, None)
    return isinstance(settings, Settings) and bool(type(settings).kinds) and last == type(settings).kind_field
