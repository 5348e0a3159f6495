"""Draws rows from a table with the shares of the labels: a cut for a missing split, or fewer rows for a small run."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from kdray.data.gold import only_gold, rows_of_labels, strata
from kdray.errors import DataError


def cut_split(
    table: pa.Table, fraction: float, seed: int, labels: Sequence[str], *, where: str, role: str
) -> tuple[pa.Table, pa.Table]:
    """Cut a fraction of the rows off; the rest and the cut rows, both with the shares of the labels.

    Raises DataError if the cut rows do not have at least two different answers.
    """
    cut, rest = draw_rows(table, round(fraction * table.num_rows), seed, leave=1)
    if cut.num_rows == 0 or only_gold(cut, labels):
        raise DataError(
            f"{where}: {_describe_few_rows(table, fraction, labels, role)} (data.{role}_fraction). Give more rows, or "
            f"a {role} split."
        )
    return rest, cut


def draw_rows(table: pa.Table, count: int, seed: int, leave: int = 0) -> tuple[pa.Table, pa.Table]:
    """Draw `count` rows with the shares of the labels; the drawn rows and the others, both in their original order.

    At least one row of each label is drawn if `count` allows it, and at least `leave` rows of each label are not drawn.
    What a label is for rows with several of them, or with numbers, is in `gold.strata`.
    """
    random = np.random.default_rng(seed)
    labels = strata(table["label"])
    shuffled = random.permutation(len(labels))
    # The rank of a row is its position among the shuffled rows of its label, divided by their number. The rows with the
    # lowest ranks have the shares of the labels, and the first row of each label (rank 0) comes before all others.
    ranks = np.empty(len(labels))
    for label in np.unique(labels):
        rows_of_label = shuffled[labels[shuffled] == label]
        ranks[rows_of_label] = np.arange(len(rows_of_label)) / len(rows_of_label)
        if leave:
            ranks[rows_of_label[len(rows_of_label) - leave :]] = np.inf
    first = shuffled[np.argsort(ranks[shuffled], kind="stable")][:count]
    is_drawn = np.zeros(len(labels), bool)
    is_drawn[first[np.isfinite(ranks[first])]] = True
    return table.filter(pa.array(is_drawn)), table.filter(pa.array(~is_drawn))


def _describe_few_rows(table: pa.Table, fraction: float, labels: Sequence[str], role: str) -> str:
    """Why no two answers could be cut off: too few rows, or all but one label have a single row."""
    if round(fraction * table.num_rows) < 2 or not labels:
        return f"train's {table.num_rows} rows are too few to cut {fraction:.0%} off for {role}"
    if pa.types.is_nested(table["label"].type):
        return f"the rows that were cut from train's {table.num_rows} rows for {role} would all have the same labels"
    counts = rows_of_labels(table["label"], len(labels))
    single = ", ".join(repr(labels[label]) for label in np.flatnonzero(counts == 1).tolist())
    return (
        f"of train's {table.num_rows} rows, only one has the label {single}; one row of each label stays in train, so "
        f"{role} would have the label {labels[int(counts.argmax())]!r} only"
    )
