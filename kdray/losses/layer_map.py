"""Which layer of a student learns from which layer of its teacher.

A layer map is a name in `LAYER_MAPS`, or explicit pairs as text: "1:4,2:8" (student:teacher, numbered from 1).
"""

import re
from collections.abc import Callable
from typing import TypeAlias

from kdray.errors import SpecError, did_you_mean

Pairs: TypeAlias = tuple[tuple[int, int], ...]
"""The number of a layer of the student, and of the layer of the teacher that it learns from; both from 1."""


def _evenly(student: int, teacher: int) -> Pairs:
    return tuple((layer, max(1, round(layer * teacher / student))) for layer in range(1, student + 1))


def _skip(student: int, teacher: int) -> Pairs:
    stride = max(1, teacher // student)
    return tuple((layer, min(teacher, layer * stride)) for layer in range(1, student + 1))


def _first(student: int, teacher: int) -> Pairs:
    return tuple((layer, min(layer, teacher)) for layer in range(1, student + 1))


def _last(student: int, teacher: int) -> Pairs:
    return tuple((layer, max(1, teacher - student + layer)) for layer in range(1, student + 1))


def _final(student: int, teacher: int) -> Pairs:
    return ((student, teacher),)


LAYER_MAPS: dict[str, Callable[[int, int], Pairs]] = {
    "evenly": _evenly,
    "skip": _skip,
    "first": _first,
    "last": _last,
    "final": _final,
}
"""The value of `distillation.layer_map` -> its pairs as a function of the numbers of layers of student and teacher.

`evenly`: the last layers of both form a pair, and the others are spread over the teacher (the uniform map of Jiao et
al. 2020, arXiv:1909.10351). `skip`: every k-th layer from the bottom, k = teacher's layers / student's layers, rounded
down; `last`: the top layers of the teacher (both from Sun et al. 2019, arXiv:1908.09355, with the last layer, which
their maps leave out). `first`: the bottom layers. `final`: the last layers of both alone (Wang et al. 2020,
arXiv:2002.10957).
"""

_PAIR = re.compile(r"\s*([0-9]{1,4})\s*:\s*([0-9]{1,4})\s*")


def check_layer_map(layer_map: str) -> str:
    """This layer map. Raises ValueError if it is neither a name nor different pairs of numbers from 1."""
    if layer_map not in LAYER_MAPS:
        _explicit_pairs(layer_map)
    return layer_map


def layer_pairs(layer_map: str, student: int, teacher: int) -> Pairs:
    """The pairs of a layer map for models with these numbers of layers.

    Raises SpecError for explicit pairs with a layer that one of the models does not have.
    """
    if layer_map in LAYER_MAPS:
        return LAYER_MAPS[layer_map](student, teacher)
    pairs = _explicit_pairs(layer_map)
    for owner, layers, numbers in (
        ("student", student, [p[0] for p in pairs]),
        ("teacher", teacher, [p[1] for p in pairs]),
    ):
        beyond = [number for number in numbers if not 1 <= number <= layers]
        if beyond:
            raise SpecError(
                f"distillation.layer_map: got {layer_map!r}, but the {owner} has no layer {beyond[0]}: it has {layers} "
                f"{'layer' if layers == 1 else 'layers'}, numbered from 1."
            )
    return pairs


def _explicit_pairs(layer_map: str) -> Pairs:
    matches = [_PAIR.fullmatch(part) for part in layer_map.split(",")]
    if not all(matches):
        names = list(LAYER_MAPS)
        raise ValueError(
            f"got {layer_map!r}; {did_you_mean(layer_map, names, listed=names)} Or give pairs of layers, "
            'student:teacher from 1: "1:4,2:8".'
        )
    pairs = tuple((int(match[1]), int(match[2])) for match in matches if match)
    if 0 in {number for pair in pairs for number in pair}:
        raise ValueError(
            f"got {layer_map!r}; layers are numbered from 1. The weight distillation.embeddings compares layer 0."
        )
    if len(set(pairs)) < len(pairs):
        raise ValueError(f"got {layer_map!r}; it has a pair twice. Give each pair once.")
    return pairs
