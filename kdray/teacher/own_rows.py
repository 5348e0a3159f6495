"""The rows that a teacher is fine-tuned on, where they are other rows than those of its students."""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from kdray.data.gold import only_gold
from kdray.data.repeats import repeats
from kdray.data.rows import TEST, TRAIN, VALIDATION
from kdray.data.splits import Data, Splits, as_dataset, load_splits
from kdray.errors import DataError, SpecError
from kdray.sources.tables import short_list, short_repr
from kdray.storage.files import fingerprint
from kdray.tasks.task import Task


def own_rows(data: Data, task: Task, of_students: Splits) -> Splits:
    """The rows of the setting `teacher.data`, without those that stand in the validation or test rows of the students.

    The notes of the result say what was left out. Raises DataError for rows that cannot be read or of which none is
    left, SpecError if they have other labels than the rows of the students.
    """
    try:
        rows = load_splits(data, task)
    except DataError as error:
        raise DataError(f"teacher.data: {error}") from None
    if rows.labels != of_students.labels:
        raise SpecError(
            f"teacher.data: its labels are {short_list(rows.labels)}, but those of data are "
            f"{short_list(of_students.labels)}. Give rows with the same labels, or name all labels in task.labels."
        )
    found = repeats(rows.columns(TRAIN), [of_students.columns(split) for split in (VALIDATION, TEST)])
    is_repeat_N = found.exact_N | found.near_N
    notes = [f"teacher.data: {note}" for note in rows.notes]
    key = rows.key
    if is_repeat_N.any():
        example = found.exact or found.near
        assert example is not None
        notes.append(
            f"teacher.data: {is_repeat_N.sum():,} of {len(is_repeat_N):,} rows to train on stand in validation or test "
            f"of data, too, exactly or nearly, for example {short_repr(example.text)}; left out, because teacher and "
            "students are measured there."
        )
        table = rows.train.data.table.filter(pa.array(~is_repeat_N))
        if not table.num_rows or only_gold(table, rows.labels):
            raise DataError(
                "teacher.data: without the rows that stand in validation or test of data, too, no two different "
                "answers are left to learn. Give other rows."
            )
        rows = replace(rows, train=as_dataset(table))
        key = fingerprint(rows.key, np.packbits(is_repeat_N).tobytes().hex())
    return replace(rows, key=key, notes=tuple(notes))
