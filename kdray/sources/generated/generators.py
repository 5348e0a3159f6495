"""All generators. A new generator is a file with its class, and a line in `GENERATORS`."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, SerializeAsAny

from kdray.errors import did_you_mean
from kdray.sources.generated.articles import GeneratedArticles
from kdray.sources.generated.drawing import GeneratedRows
from kdray.sources.generated.mentions import GeneratedMentions
from kdray.sources.generated.moods import GeneratedMoods
from kdray.sources.generated.pairs import GeneratedPairs
from kdray.sources.generated.reviews import GeneratedReviews
from kdray.sources.tables import short_repr

GENERATORS: tuple[type[GeneratedRows], ...] = (
    GeneratedReviews,
    GeneratedMentions,
    GeneratedMoods,
    GeneratedPairs,
    GeneratedArticles,
)
"""The first one is that of settings without a kind, as sweeps have them that were started when there was no other."""

KINDS: Mapping[str, type[GeneratedRows]] = {each.model_fields["kind"].default: each for each in GENERATORS}
"""The value of `kind` -> the generator."""

GeneratedRows.kinds = KINDS

OLDEST = next(iter(KINDS))


def generator_of(value: Any) -> Any:
    """The generator with these settings, if the value is a mapping; a name or a generator itself stays as it is.

    Raises ValueError for an unknown kind and for any other value, and SpecError for settings that are not allowed.
    """
    if isinstance(value, str | GeneratedRows):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(
            f"got {short_repr(value)}; give a name of data, or a generator such as {{'kind': '{OLDEST}'}}."
        )
    kind = value.get("kind", OLDEST)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"there is no generator of the kind {short_repr(kind)}; {did_you_mean(str(kind), KINDS)}")
    return KINDS[kind](**value)


NameOrGenerator: TypeAlias = Annotated[str | SerializeAsAny[GeneratedRows], BeforeValidator(generator_of)]
"""The type of a setting that holds a name of data, or a generator."""
