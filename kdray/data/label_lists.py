"""Checks a column with a list of labels in each cell: names, or numbers that have names."""

from collections.abc import Sequence

import numpy as np

from kdray.data.cells import cell_error
from kdray.data.gold import SeveralLabels
from kdray.data.list_cells import ListColumn, list_column
from kdray.sources.tables import Table, short_list

RULE = "a label is a name, or a whole number"


def label_lists(
    table: Table, name: str, class_names: Sequence[str] | None, may_be_absent: bool = True
) -> SeveralLabels:
    """The labels of each row, in the order of its list.

    `class_names` are the names of the numbers 0, 1, ... in the dataset's own features. Raises DataError, with file, row
    and column, for a cell that is no list, an item that is neither a text nor a whole number, and a number without a
    name.
    """
    column = list_column(table, name, "task.label", may_be_absent=may_be_absent)
    encoded = column.values.dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    values = encoded.dictionary.to_pylist()
    if class_names is not None and not column.has_texts:
        _check_numbers(table, name, column, class_names)
        values = [class_names[value] for value in values]
    names = [str(value).strip() for value in values]
    # Different cells may have the same name, such as "a" and "a ".
    by_code = tuple(dict.fromkeys(names))
    places = {each: place for place, each in enumerate(by_code)}
    codes = np.array([places[each] for each in names], np.int64)[codes] if names else codes
    return SeveralLabels(codes=codes, by_code=by_code, starts=column.starts, absent=column.absent)


def _check_numbers(table: Table, name: str, column: ListColumn, class_names: Sequence[str]) -> None:
    numbers = column.values.to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero((numbers < 0) | (numbers >= len(class_names)))
    if len(wrong):
        row, _ = column.place_of(int(wrong[0]))
        problem = (
            f"label {numbers[wrong[0]]} has no name; there are {len(class_names)} ({short_list(list(class_names))})"
        )
        raise cell_error(table, row, name, problem, RULE)
