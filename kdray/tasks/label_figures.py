"""How well a model finds each single label: F1 and the number of what it should have found.

Letters: C labels, types of spans or tags.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelFigures:
    """The figures of one label, or of one type of spans."""

    f1: float
    """From 0 to 1; 0 for a label that neither the gold nor the answers have."""
    count: int
    """How often the gold has the label: see `Task.counted`."""


def label_figures(labels: Sequence[str], f1_C: np.ndarray, counts_C: np.ndarray) -> dict[str, LabelFigures]:
    """Label -> its figures."""
    values = zip(labels, f1_C, counts_C, strict=True)
    return {label: LabelFigures(float(f1), int(count)) for label, f1, count in values}
