"""What the tags of one scheme are in another one, such as those of a teacher and those of the data."""

from collections.abc import Sequence

from kdray.tasks.label_order import LabelDifference
from kdray.tasks.tag_order import scheme_of
from kdray.tasks.tag_schemes import BEGIN, SINGLE, Scheme


def scheme_difference(teacher: Sequence[str], data: Sequence[str]) -> LabelDifference | None:
    """What the teacher's tags are in the data's scheme; None if both are in one scheme, or in none.

    There are meanings where only the letters differ, as in BIOES and BILOU. BIO and IOB1 have the same tags, so nothing
    here tells them apart.
    """
    try:
        own, other = scheme_of(teacher), scheme_of(data)
        if own is other:
            return None
        parts = [own.split(tag) for tag in teacher]
    except ValueError:  # a tag outside of the scheme, or tags that mark only where spans end
        return None
    if not (own.has_spans and other.has_spans):
        return LabelDifference(f"The teacher's tags are {_name(own)}, the data's are {_name(other)}.")
    letters = {meaning: letter for letter, meaning in other.meanings.items()}
    names = None
    if set(letters) == set(own.meanings.values()):
        renamed = [kind if kind is None else f"{letters[meaning]}-{kind}" for meaning, kind in parts]
        names = tuple(tag if name is None else name for tag, name in zip(teacher, renamed, strict=True))
    sentence = f"The teacher's tags are {_name(own)}, the data's are {_name(other)}: {_describe(own, other)}."
    return LabelDifference(sentence, names if names is not None and sorted(names) == sorted(data) else None)


def _name(scheme: Scheme) -> str:
    return f"in the scheme {scheme.name}" if scheme.has_spans else "plain tags without spans"


def _describe(own: Scheme, other: Scheme) -> str:
    """Which tags of one scheme stand for which of the other one."""
    if set(own.meanings.values()) == set(other.meanings.values()):
        letters = {meaning: letter for letter, meaning in other.meanings.items()}
        return ", ".join(f"its {letter}- is {letters[meaning]}-" for letter, meaning in own.meanings.items())
    # One of them has no tags of its own for the last and the only word of a span.
    starts = f"{_subject(_letters(own, True))} {' or '.join(_letters(other, True))}"
    return f"{starts}, {_subject(_letters(own, False))} {' or '.join(_letters(other, False))}"


def _subject(letters: Sequence[str]) -> str:
    return f"its {' and '.join(letters)} {'is' if len(letters) == 1 else 'are'}"


def _letters(scheme: Scheme, first: bool) -> list[str]:
    """The prefixes of the first word of a span, or those of its other words."""
    return [f"{letter}-" for letter, meaning in scheme.meanings.items() if (meaning in (BEGIN, SINGLE)) == first]
