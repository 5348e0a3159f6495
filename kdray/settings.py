"""The base class of all settings models, and the dotted names of settings.

A setting has one dotted name everywhere: `distillation.alpha` is the field `alpha` of the model in the field
`distillation`. Each settings class is defined beside the code that it configures; this module has only the base class.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from kdray.errors import SpecError, did_you_mean

S = TypeVar("S", bound="Settings")

MAY_CHANGE: dict[str, Any] = {"may_change": True}
"""The `json_schema_extra` of a setting that does not change the results of a trial.

A sweep can be resumed with another value of such a setting.
"""


def later_field(default: Any, **constraints: Any) -> Any:
    """A field that the records of earlier sweeps do not have.

    It is left out of records and fingerprints while it has its default, so that those sweeps continue.
    """
    return Field(default, exclude_if=lambda value: bool(value == default), **constraints)


class Settings(BaseModel):
    """A frozen pydantic model that refuses unknown names; raises SpecError with one sentence for each wrong value."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)

    kinds: ClassVar[Mapping[str, type["Settings"]]] = {}
    """The value of the setting `kind_field` -> the class with this kind of settings. The list of all kinds of a group
    sets it for their base class; empty for settings without alternatives."""
    kind_field: ClassVar[str] = "kind"
    """The setting that says which of the kinds these settings are."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SpecError(_describe_errors(error, type(self))) from None

    def with_dotted(self, changes: Mapping[str, Any]) -> Self:
        """A validated copy in which `changes`, dotted name -> value, replace the present values.

        Raises SpecError for an unknown name (the message gives the most similar one) and for a value that is not
        allowed.
        """
        return _apply_changes(self, changes, self, "")


def names_that_may_change(settings: Settings, prefix: str = "") -> set[str]:
    """The dotted names of the settings and groups of settings that are marked with `MAY_CHANGE`."""
    names: set[str] = set()
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if field.json_schema_extra == MAY_CHANGE:
            names.add(f"{prefix}{name}")
        elif isinstance(value, Settings):
            names |= names_that_may_change(value, f"{prefix}{name}.")
    return names


def identifying_values(settings: Settings) -> dict[str, Any]:
    """The settings as JSON values, without those marked with `MAY_CHANGE`: the input of fingerprints."""
    values = settings.model_dump(mode="json")
    for name in names_that_may_change(settings):
        *groups, field = name.split(".")
        group_values = values
        for group in groups:
            group_values = group_values[group]
        del group_values[field]
    return values


def dotted_values(settings: Settings, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value, for every setting in this model and in the models inside it."""
    flat: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Settings):
            flat |= dotted_values(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def parse_value(text: str) -> Any:
    """Parse the value in `--set name=text`: JSON if it is valid JSON (1e-4, true, null, [1,2]), otherwise the text."""
    try:
        return json.loads(text)
    except ValueError:
        # Python's spelling of null. The word none in lower case stays text: Choose.otherwise takes it.
        return None if text == "None" else text


def _split_at_commas(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_split_at_commas)]
"""A tuple of names; the text `a,b,c` on a command line is accepted, too."""


def _apply_changes(settings: S, changes: Mapping[str, Any], root: Settings, prefix: str) -> S:
    kind, values = _kind_after(settings, changes, prefix)
    nested: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        head, _, rest = name.partition(".")
        if head not in kind.model_fields or (rest and not isinstance(values.get(head), Settings | dict)):
            others = (name for name in dotted_values(root) if kind is type(settings) or not name.startswith(prefix))
            known = dict.fromkeys((*others, *(prefix + field for field in kind.model_fields)))
            unknown = prefix + name
            hint = did_you_mean(unknown, known, listed=_candidates(unknown, known))
            raise SpecError(f"{unknown}: no such setting; {hint}")
        if rest and isinstance(values[head], Settings):
            # Collected first: one validation then checks all changes of a group together.
            nested.setdefault(head, {})[rest] = value
        elif rest:
            values[head] = {**values[head], rest: value}
        else:
            values[head] = value
    for head, group_changes in nested.items():
        values[head] = _apply_changes(values[head], group_changes, root, f"{prefix}{head}.")
    try:
        return kind(**values)
    except SpecError as error:
        # A message from Python code names the class (Student.depth); the user of `--set` wrote student.depth.
        raise SpecError(str(error).replace(f"{kind.__name__}.", prefix)) from None


def _kind_after(settings: S, changes: Mapping[str, Any], prefix: str) -> tuple[type[S], dict[str, Any]]:
    """The class of the settings after these changes, and their values before.

    If a change names another kind, its settings have their defaults, except those that were given and that it also has.
    """
    kinds, kind_field = type(settings).kinds, type(settings).kind_field
    if not kinds:
        return type(settings), {name: getattr(settings, name) for name in type(settings).model_fields}
    own_kind = getattr(settings, kind_field, None)
    kind = changes.get(kind_field, own_kind)
    if not isinstance(kind, str) or kind not in kinds:
        raise SpecError(f"{prefix}{kind_field}: got {kind!r}; {did_you_mean(str(kind), kinds)}")
    # Only what was given: a default that is handed on as a value would stay when a later change names another kind.
    given = settings.model_fields_set if kind == own_kind else settings.model_fields_set - {kind_field}
    other: Any = kinds[kind]
    return other, {name: getattr(settings, name) for name in other.model_fields if name in given}


def _candidates(unknown: str, known: Iterable[str]) -> list[str]:
    """The settings of the group that an unknown name starts with, or the names of all groups if it has no group.

    The list of all settings of a sweep would be too long for a message.
    """
    names, group = list(known), unknown.partition(".")[0] + "."
    in_group = [name for name in names if name.startswith(group)]
    return in_group or sorted({name.partition(".")[0] for name in names})


def _describe_errors(error: ValidationError, model: type[Settings]) -> str:
    return " ".join(_describe_error(detail, model) for detail in error.errors())


def _describe_error(detail: ErrorDetails, model: type[Settings]) -> str:
    where = ".".join([model.__name__, *(str(part) for part in detail["loc"])])
    match detail["type"]:
        case "extra_forbidden":
            name = str(detail["loc"][-1])
            return f"{where}: no such setting; {did_you_mean(name, _field_names(model, detail['loc'][:-1]))}"
        case "missing":
            return f"{where}: must be given."
        case "value_error":
            return f"{where}: {detail['ctx']['error']}" if detail["loc"] else str(detail["ctx"]["error"])
        case _:
            return f"{where}: got {detail['input']!r}; {detail['msg'][0].lower()}{detail['msg'][1:]}."


def _field_names(model: type[Settings], loc: tuple[int | str, ...]) -> list[str]:
    """The field names of the model at `loc` inside `model`; a part of `loc` without a known model is skipped."""
    for part in loc:
        field = model.model_fields.get(str(part))
        types = (field.annotation, *get_args(field.annotation)) if field else ()
        model = next((t for t in types if isinstance(t, type) and issubclass(t, Settings)), model)
    return list(model.model_fields)
