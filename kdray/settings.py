"""The base of every settings model, and the dotted names of its knobs.

A knob has one dotted name everywhere: `distillation.alpha` is the field `alpha` of the model held in the field
`distillation`. What a setting means stands beside what it configures, not here.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from kdray.errors import SpecError, did_you_mean

S = TypeVar("S", bound="Settings")

MAY_CHANGE: dict[str, Any] = {"may_change": True}
"""The `json_schema_extra` of a setting that changes no number of a trial; another value may continue a sweep."""


class Settings(BaseModel):
    """Frozen, strict about names; a mistake is a SpecError with a sentence for each wrong value."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SpecError(_sentences(error, type(self))) from None

    def with_dotted(self, changes: Mapping[str, Any]) -> Self:
        """A checked copy in which the settings of these dotted names have these values.

        Raises SpecError for a name that is not there (with the nearest one) and for a value that is not allowed.
        """
        return _changed(self, changes, self, "")


def names_that_may_change(settings: Settings, prefix: str = "") -> set[str]:
    """The dotted names of the settings, or groups of settings, that are marked with `MAY_CHANGE`."""
    names: set[str] = set()
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if field.json_schema_extra == MAY_CHANGE:
            names.add(f"{prefix}{name}")
        elif isinstance(value, Settings):
            names |= names_that_may_change(value, f"{prefix}{name}.")
    return names


def identifying_values(settings: Settings) -> dict[str, Any]:
    """The settings as JSON, without those that may change: what fingerprints and identities are made of."""
    values = settings.model_dump(mode="json")
    for name in names_that_may_change(settings):
        *groups, last = name.split(".")
        holder = values
        for group in groups:
            holder = holder[group]
        del holder[last]
    return values


def dotted_values(settings: Settings, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value, for every setting below this one."""
    flat: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Settings):
            flat |= dotted_values(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def parse_value(text: str) -> Any:
    """The value written in `--set name=text`: JSON where it is JSON (1e-4, true, null, [1,2]), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return None if text == "None" else text


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
"""Several names; on a command line written `a,b,c`."""


def _changed(settings: S, changes: Mapping[str, Any], root: Settings, prefix: str) -> S:
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    nested: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        head, _, rest = name.partition(".")
        if head not in values or (rest and not isinstance(values[head], Settings | dict)):
            known, unknown = dotted_values(root), prefix + name
            raise SpecError(f"{unknown}: no such setting; {did_you_mean(unknown, known, _beside(unknown, known))}")
        if rest and isinstance(values[head], Settings):
            nested.setdefault(head, {})[rest] = value
        elif rest:
            values[head] = {**values[head], rest: value}
        else:
            values[head] = value
    for head, inner in nested.items():
        values[head] = _changed(values[head], inner, root, f"{prefix}{head}.")
    try:
        return type(settings)(**values)
    except SpecError as error:
        raise SpecError(str(error).replace(f"{type(settings).__name__}.", prefix)) from None


def _beside(name: str, known: Iterable[str]) -> list[str]:
    """The settings that an unknown name may have meant: those of its group, or the groups if there is no such group."""
    names, group = list(known), name.partition(".")[0] + "."
    return [known for known in names if known.startswith(group)] or sorted({known.partition(".")[0] for known in names})


def _sentences(error: ValidationError, model: type[Settings]) -> str:
    return " ".join(_sentence(detail, model) for detail in error.errors())


def _sentence(detail: ErrorDetails, model: type[Settings]) -> str:
    where = ".".join([model.__name__, *(str(part) for part in detail["loc"])])
    match detail["type"]:
        case "extra_forbidden":
            name = str(detail["loc"][-1])
            return f"{where}: no such setting; {did_you_mean(name, _fields(model, detail['loc'][:-1]))}"
        case "missing":
            return f"{where}: must be given."
        case "value_error":
            return f"{where}: {detail['ctx']['error']}" if detail["loc"] else str(detail["ctx"]["error"])
        case _:
            return f"{where}: got {detail['input']!r}; {detail['msg'][0].lower()}{detail['msg'][1:]}."


def _fields(model: type[Settings], loc: tuple[int | str, ...]) -> list[str]:
    """The fields of the model at `loc` below `model`; of `model` itself where that cannot be told."""
    for part in loc:
        field = model.model_fields.get(str(part))
        types = (field.annotation, *get_args(field.annotation)) if field else ()
        model = next((t for t in types if isinstance(t, type) and issubclass(t, Settings)), model)
    return list(model.model_fields)
