"""Files for other tools: the texts of a sweep that a teacher must answer, and a transfer set as a file with answers.

    texts_to_answer(Data(source="reviews"), TextClassification(), "texts.parquet")
    write_answers(splits, tokens, transfer, task, "answers.parquet")

`Teacher(outputs=AnswerFile(source="answers.parquet", id="id"))` reads such answers again.
Shapes: A answers, C outputs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from kdray.data.rows import SPLITS
from kdray.data.splits import Data, Splits, load_splits
from kdray.data.tokens import TokenSet
from kdray.data.transfer_set import TransferSet
from kdray.storage.files import replace_file
from kdray.tasks.task import Task
from kdray.teacher.answers import SPLIT


def texts_to_answer(data: Data, task: Task, file: str | Path) -> Splits:
    """Write the texts of all splits, as a sweep with these settings reads them, into a Parquet file.

    The columns are split, id, text and (for pairs) pair; for a task that answers for each word, text is the list of the
    words. Texts without labels are in the split train. Returns the rows. Raises DataError as a sweep does.
    """
    splits = load_splits(data, task)
    _write(pa.concat_tables([table for _, table in _texts(splits)]), file)
    return splits


def write_answers(splits: Splits, tokens: TokenSet, transfer: TransferSet, task: Task, file: str | Path) -> None:
    """Write the logits of a transfer set, with the texts, into a Parquet file that a sweep can take as its teacher.

    There is a column for each label, called like it, with `AnswerFile(form="logits", id="id")`. Raises ValueError for a
    label that is called like another column of the file.
    """
    names = splits.labels or task.gold_columns[:1]
    tables = []
    for split in SPLITS:
        logits_AxC = transfer.all_rows(tokens, split).teacher_logits()
        texts = pa.concat_tables([table for name, table in _texts(splits) if name == split])
        if taken := set(names) & set(texts.column_names):
            raise ValueError(f"the label {taken.pop()!r} is called like a column of the texts: rename it in the data.")
        columns = {name: _cells(logits_AxC[:, output], texts["text"]) for output, name in enumerate(names)}
        tables.append(pa.table({**{name: texts[name] for name in texts.column_names}, **columns}))
    _write(pa.concat_tables(tables), file)


def _texts(splits: Splits) -> Iterator[tuple[str, pa.Table]]:
    """The split and the texts of each block of rows."""
    for split in SPLITS:
        for block in splits.blocks(split):
            columns: dict[str, Any] = {name: block[name][:] for name in ("id", "text", "pair") if name in block}
            yield split, pa.table({SPLIT: [split] * len(columns["id"]), **columns})


def _cells(logits_A: np.ndarray, texts: pa.ChunkedArray) -> pa.Array:
    """One number for each text, or for a text that is a list of words a list with one for each of them."""
    values = pa.array(logits_A, pa.float32())
    if not pa.types.is_nested(texts.type):
        return values
    starts = np.concatenate(([0], np.cumsum([len(words) for words in texts.to_pylist()])))
    return pa.LargeListArray.from_arrays(starts, values)


def _write(table: pa.Table, file: str | Path) -> None:
    with replace_file(Path(file).expanduser()) as temporary:
        parquet.write_table(table, temporary)
