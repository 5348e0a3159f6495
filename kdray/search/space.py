"""The space of a sweep: dotted names of a trial's settings -> Ray Tune domains, or plain lists of values.

This module checks the space against the settings of a trial, converts it into Optuna distributions, and lists its
architectures. The meaning of a setting is documented where the setting is defined; `sampling` draws the values.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Self, TypeAlias

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

from kdray.errors import SpecError, did_you_mean
from kdray.search.conditions import UNCONDITIONAL, Conditions, conditions_of, decides
from kdray.settings import Settings, dotted_values

Space: TypeAlias = Mapping[str, Any]
"""Dotted name -> Tune domain (`tune.loguniform(1e-5, 5e-4)`), or a list of values (`[1, 2, 3]`)."""

MAX_ARCHITECTURES = 256
"""Each architecture is measured before the search, which takes a few seconds."""


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space as Optuna distributions. Raises SpecError for a value that is no domain, or that Optuna cannot draw."""
    return {name: _distribution(name, value) for name, value in space.items()}


def domains(distributions: Mapping[str, BaseDistribution]) -> Space:
    """The space that has these distributions: the inverse of `distributions`."""
    return {name: _domain_of(distribution) for name, distribution in distributions.items()}


def end_values(distribution: BaseDistribution) -> tuple[Any, ...]:
    """The smallest and the largest value of a range, or every value of a choice."""
    match distribution:
        case CategoricalDistribution():
            return tuple(distribution.choices)
        case FloatDistribution() | IntDistribution():
            return (distribution.low, distribution.high)
    raise TypeError(f"a {type(distribution).__name__} has no known ends")


@dataclass(frozen=True)
class SearchSpace:
    """The searched settings of a sweep, and which of them a trial has."""

    domains: Space
    conditions: Conditions = UNCONDITIONAL

    @classmethod
    def checked(cls, space: Space, recipe: Settings) -> Self:
        """The space of these domains, for trials whose other settings are those of `recipe`.

        Raises SpecError for a name that is no setting of a trial, for a domain with an end that is not allowed, and for
        a setting that no trial has, because it belongs to a kind that is not drawn.
        """
        deciding = {name: space[name] for name in space if decides(recipe, name)}
        kinds = {name: end_values(distribution) for name, distribution in distributions(deciding).items()}
        conditions = conditions_of(space, kinds, recipe)
        for name in space:
            if all(name in missing for missing in conditions.missing.values()):
                raise SpecError(f"space[{name!r}]: no such setting; {did_you_mean(name, dotted_values(recipe))}")
        ends = {name: end_values(distribution) for name, distribution in distributions(space).items()}
        for values, missing in conditions.missing.items():
            kind = recipe.with_dotted(dict(zip(deciding, values, strict=True)))
            for name in space:
                if name not in missing:
                    _check_ends(name, ends[name], kind)
        return cls(space, conditions)

    def architectures(
        self, prefix: str = "student.", without: tuple[str, ...] = ("student.dropout",)
    ) -> tuple[dict[str, Any], ...]:
        """Every combination of the searched settings that shape the student; one empty one if none is searched.

        `without` lists settings below the prefix that change neither size nor latency.
        Raises SpecError when there are too many architectures to measure.
        """
        space, deciding = self.domains, self.conditions.deciding
        shaping = {name: value for name, value in space.items() if name.startswith(prefix) and name not in without}
        values = {name: _all_values(name, distribution) for name, distribution in distributions(shaping).items()}
        combinations: dict[tuple[tuple[str, Any], ...], None] = {}
        for kind in product(*(values[name] for name in deciding)):
            decided = dict(zip(deciding, kind, strict=True))
            names = self.conditions.names(decided, values)
            count = len(combinations) + math.prod(len(values[name]) for name in names if name not in decided)
            if count > MAX_ARCHITECTURES:
                raise SpecError(
                    f"space: {', '.join(names)} make {count} architectures; at most {MAX_ARCHITECTURES} can be "
                    "measured before the search. Give these settings fewer values."
                )
            of_kind = product(*([decided[name]] if name in decided else values[name] for name in names))
            combinations |= {tuple(zip(names, combination, strict=True)): None for combination in of_kind}
        return tuple(map(dict, combinations))


def narrow_distributions(
    distributions: Mapping[str, BaseDistribution], allowed: Sequence[Mapping[str, Any]]
) -> dict[str, BaseDistribution]:
    """The distributions without the values that no allowed architecture has.

    Gaps within a range of integers stay, because an Optuna range has no gaps.
    """
    shaping = {name for shape in allowed for name in shape}
    return {
        name: _narrow(distribution, {shape[name] for shape in allowed if name in shape})
        if name in shaping
        else distribution
        for name, distribution in distributions.items()
    }


def extend_choices(name: str, before: BaseDistribution, now: BaseDistribution) -> BaseDistribution:
    """A choice that lists the values of an earlier choice first, in their order; any other distribution unchanged.

    Values that the earlier choice repeats stay repeated, because Optuna stores a trial's value as its index in the
    list. Raises SpecError when a value of the earlier choice is missing.
    """
    if not isinstance(before, CategoricalDistribution) or not isinstance(now, CategoricalDistribution):
        return now
    if not set(before.choices) <= set(now.choices):
        raise SpecError(
            f"space[{name!r}]: was {list(before.choices)}, now {list(now.choices)}; a list may only grow once the "
            "sweep has trials. Put the old values back, or give the sweep another name."
        )
    new = [choice for choice in now.choices if choice not in before.choices]
    return CategoricalDistribution([*before.choices, *new])


def is_longer(before: Any, now: Any) -> bool:
    """Whether `now` is a choice with all values of the choice `before`. Both are Optuna's JSON of a distribution."""
    old, new = ((domain or {}).get("attributes", {}).get("choices") for domain in (before, now))
    return bool(old and new) and set(old) <= set(new)


def can_draw(distribution: BaseDistribution, name: str, value: Any) -> bool:
    """Whether the distribution can give this value."""
    # create_trial raises an error for a value that the distribution excludes.
    try:
        create_trial(state=TrialState.RUNNING, params={name: value}, distributions={name: distribution})
    except (ValueError, TypeError):
        return False
    return True


def _check_ends(name: str, ends: Collection[Any], recipe: Settings) -> None:
    for end in ends:
        try:
            recipe.with_dotted({name: end})
        except SpecError as error:
            raise SpecError(f"space[{name!r}]: {end!r} is not allowed. {error}") from None


def _narrow(distribution: BaseDistribution, allowed: Collection[Any]) -> BaseDistribution:
    match distribution:
        case CategoricalDistribution():
            return CategoricalDistribution([choice for choice in distribution.choices if choice in allowed])
        case IntDistribution(log=log, step=step):
            return IntDistribution(min(allowed), max(allowed), log=log, step=step)
    return distribution


def _distribution(name: str, value: Any) -> BaseDistribution:
    domain = _domain(name, value)
    try:
        distribution: BaseDistribution = OptunaSearch.convert_search_space({name: domain})[name]
    except (ValueError, NotImplementedError) as error:
        raise SpecError(
            f"space[{name!r}]: Optuna cannot draw from {domain}: {error} Use tune.uniform, tune.loguniform, "
            "tune.quniform, tune.randint, tune.lograndint, tune.choice or a list of values."
        ) from None
    return distribution


def _domain_of(distribution: BaseDistribution) -> Any:
    # The upper end of Tune's integer domains is excluded, except for qrandint; that of Optuna's is included.
    match distribution:
        case CategoricalDistribution(choices=choices):
            return list(choices)
        case IntDistribution(low=low, high=high, log=True):
            return tune.lograndint(low, high + 1)
        case IntDistribution(low=low, high=high, step=1):
            return tune.randint(low, high + 1)
        case IntDistribution(low=low, high=high, step=step):
            return tune.qrandint(low, high, step)
        case FloatDistribution(low=low, high=high, log=True):
            return tune.loguniform(low, high)
        case FloatDistribution(low=low, high=high, step=None):
            return tune.uniform(low, high)
        case FloatDistribution(low=low, high=high, step=float(step)):
            return tune.quniform(low, high, step)
    raise TypeError(f"a {type(distribution).__name__} has no known domain")


def _domain(name: str, value: Any) -> Domain:
    """The value as a Tune domain. Raises SpecError for anything else than a domain or a list of plain values."""
    if isinstance(value, Mapping) and set(value) == {"grid_search"}:
        raise SpecError(f"space[{name!r}]: a sampler cannot draw from a grid search; use a list of its values instead.")
    if isinstance(value, list | tuple):
        value = tune.choice(list(value))
    if not isinstance(value, Domain):
        raise SpecError(
            f"space[{name!r}]: got {value!r}; allowed are a Ray Tune domain, such as tune.uniform(0.1, 0.9), or a list "
            "of values. A fixed value is a setting of the sweep, not part of its space."
        )
    categories = getattr(value, "categories", ["a range"])
    wrong = [item for item in categories if not isinstance(item, str | int | float | bool | None)]
    if not categories or wrong:
        came = f"{wrong[0]!r}" if wrong else "no values"
        raise SpecError(f"space[{name!r}]: got {came}; allowed in a choice are numbers, strings, True, False and None.")
    return value


def _all_values(name: str, distribution: BaseDistribution) -> tuple[Any, ...]:
    """Every value of the distribution. Raises SpecError for a range without steps."""
    match distribution:
        case CategoricalDistribution():
            return tuple(distribution.choices)
        case IntDistribution():
            return tuple(range(distribution.low, distribution.high + 1, distribution.step))
        case FloatDistribution() if distribution.step is not None:
            steps = round((distribution.high - distribution.low) / distribution.step)
            return tuple(distribution.low + index * distribution.step for index in range(steps + 1))
    raise SpecError(
        f"space[{name!r}]: a range without steps makes infinitely many architectures, and each is measured before the "
        "search. Use a list of values, tune.randint or tune.quniform."
    )
