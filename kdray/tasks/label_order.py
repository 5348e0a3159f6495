"""The order of the labels of a task: as the user gives it, as the dataset's own features have it, or sorted."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kdray.data.task_data import LabelOrder

WHOLE_NUMBER = re.compile(r"-?\d{1,18}")
"""A whole number that fits into 64 bits."""


@dataclass(frozen=True)
class LabelDifference:
    """How the labels of a model differ from those of the data, where that is more than their names and order."""

    sentence: str
    meanings: tuple[str, ...] | None = None
    """For each output of the model the label of the data that it means; None if they do not correspond."""


def order_names(found: Iterable[str], given: Sequence[str] | None, class_names: Sequence[str] | None) -> LabelOrder:
    """The labels in order, and the number of each name that the data may contain.

    `found` are the names in the training rows, `given` those of the user, `class_names` those of the dataset's own
    features.
    """
    found = set(found)
    order = given or class_names
    if order is None and all(WHOLE_NUMBER.fullmatch(name) for name in found):
        # By value, so that 10 follows 9; names of the same value, such as 1 and 01, by name.
        order = sorted(found, key=lambda name: (int(name), name))
    elif order is None:
        order = sorted(found)
    numbers = {name: number for number, name in enumerate(order)}
    if all(WHOLE_NUMBER.fullmatch(name) for name in found) and not found & set(order):
        # The data contain the numbers 0, 1, ..., and the user gives their names. A larger number has no name.
        numbers = {str(number): number for number in range(len(order))}
    return LabelOrder(tuple(order), numbers)
