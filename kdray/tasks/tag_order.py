"""The tags of a task in order: from the training rows, with the scheme that they are in.

Shapes: N sentences, A words.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kdray.data.gold import SeveralLabels
from kdray.data.task_data import CheckedTable, LabelOrder
from kdray.errors import DataError
from kdray.sources.tables import short_list
from kdray.tasks.label_order import order_names
from kdray.tasks.spans import find_impossible
from kdray.tasks.tag_schemes import OUTSIDE, PLAIN, Scheme, TagSet, recognise, wrong_tags


def order_tags(train: Sequence[CheckedTable], given: Sequence[str] | None, scheme: Scheme | None) -> LabelOrder:
    """The tags of the training tables in order. `given` are their names in the order of their numbers, if known.

    Raises DataError for a tag that is outside of the scheme, and if all words have the same tag, or if there are none.
    """
    order = order_names((name for gold in _gold(train) for name in gold.names), given, None)
    tags_A, _ = _tags(train, order)
    found = [order.labels[number] for number in np.unique(tags_A)]
    if not found:
        raise DataError(f"{train[0].where}: no word has a tag. Check the column of the tags (task.label).")
    if len(found) < 2:
        raise DataError(
            f"{train[0].where}: all {len(tags_A):,} words have the tag {found[0]!r}; at least two are needed. Check "
            "the column of the tags (task.label)."
        )
    scheme = scheme or recognise_scheme(train, order)
    _check_tags(train, order, scheme)
    if given is None:
        complete = scheme.complete({scheme.split(name)[1] or name for name in found if _is_typed(scheme, name)})
        order = LabelOrder(complete, {name: number for number, name in enumerate(complete)})
    notes = [_describe(scheme, TagSet(scheme, order.labels)), *describe_impossible(train, order, scheme)]
    return replace(order, notes=tuple(notes), may_be_new=_with_known_types(scheme, order, found))


def describe_impossible(parts: Sequence[CheckedTable], order: LabelOrder, scheme: Scheme) -> list[str]:
    """A sentence, for the tables of one split, on the tags at places that the scheme does not allow; none without any.

    All tags of the tables have a number.
    """
    tags_A, starts_N1 = _tags(parts, order)
    impossible = find_impossible(TagSet(scheme, order.labels), tags_A, starts_N1)
    return [f"{parts[0].where}: {impossible.describe(scheme, len(starts_N1) - 1)}"] if impossible else []


def recognise_scheme(train: Sequence[CheckedTable], order: LabelOrder) -> Scheme:
    """The scheme of the tags of the training tables. Raises DataError for tags that make no spans."""
    tags_A, starts_N1 = _tags(train, order)
    try:
        scheme = recognise(order.labels, tags_A, starts_N1)
    except ValueError as error:
        raise DataError(f"{train[0].where}: {error} (task.label).") from None
    if scheme is PLAIN:
        raise DataError(
            f"{train[0].where}: the tags {short_list(list(order.labels), 5)} make no spans: none of them is such as "
            "B-person. If each word has a tag of its own, such as its part of speech, say --set task.scheme=plain; "
            "numbers need their names (task.labels)."
        )
    return scheme


def scheme_of(labels: Sequence[str]) -> Scheme:
    """The scheme of these tags. BIO and IOB1 have the same tags, and spans are read in the same way in both."""
    return recognise(labels, np.zeros(0, np.int64), np.zeros(1, np.int64))


def _gold(parts: Sequence[CheckedTable]) -> list[SeveralLabels]:
    return [part.gold for part in parts if isinstance(part.gold, SeveralLabels)]


def _tags(parts: Sequence[CheckedTable], order: LabelOrder) -> tuple[np.ndarray, np.ndarray]:
    """The number of each word's tag (A), and the first word of each sentence with the number of words (N + 1)."""
    gold = _gold(parts)
    numbers = [np.array([order.numbers.get(name, 0) for name in each.by_code], np.int64)[each.codes] for each in gold]
    lengths = [np.diff(each.starts) for each in gold]
    return np.concatenate([*numbers, np.zeros(0, np.int64)]), np.cumsum(np.concatenate([[0], *lengths]))


def _check_tags(train: Sequence[CheckedTable], order: LabelOrder, scheme: Scheme) -> None:
    """Raise DataError, with file and row, for the first tag that is outside of the scheme."""
    wrong = wrong_tags(scheme, order.labels)
    for part in train:
        if isinstance(part.gold, SeveralLabels):
            known = {name: number for name, number in order.numbers.items() if order.labels[number] not in wrong}
            if unknown := part.gold.unknown(known):
                row, name = unknown
                number = order.numbers.get(name)
                tag = name if number is None else order.labels[number]
                problem = wrong.get(tag, f"tag {tag!r} has no name (task.labels)")
                raise DataError(
                    f"{part.where}, row {row + 1}: {problem}. Correct the tag, or say the scheme (task.scheme)."
                )


def _is_typed(scheme: Scheme, name: str) -> bool:
    return name != OUTSIDE or not scheme.has_spans


def _with_known_types(scheme: Scheme, order: LabelOrder, found: Sequence[str]) -> frozenset[str]:
    """The tags that the training rows lack, although they have their type."""
    if not scheme.has_spans:
        return frozenset()
    types = {scheme.split(name)[1] for name in found}
    return frozenset(name for name in order.labels if scheme.split(name)[1] in types) | {OUTSIDE}


def _describe(scheme: Scheme, tags: TagSet) -> str:
    if not scheme.has_spans:
        return f"train: {len(tags.types)} plain tags, one for each word."
    return f"train: tags of the scheme {scheme.name} for {len(tags.types)} types: {short_list(list(tags.types), 10)}."
