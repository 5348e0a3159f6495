"""Predicts with a chosen student: for some texts, for lines of standard input, or for a file.

`data.sources` reads files, `data.cells` checks cells, and `forms.forms` loads the student in the requested form.

In array names: A answers, B encoded rows of a batch, L tokens, C outputs.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from torch import Tensor

from kdray.data.task_data import Encoded, TextColumns
from kdray.errors import DataError, SpecError
from kdray.evaluation.outputs import evaluation_mode
from kdray.export.shipped import Shipped
from kdray.forms.forms import open_form
from kdray.safe_text.escaping import printable
from kdray.safe_text.spreadsheet import csv_cell, is_formula, write_csv
from kdray.sources.data_files import READABLE
from kdray.sources.delimited import decode_line
from kdray.sources.opening import read_file
from kdray.sources.reading import Reading
from kdray.sources.tables import Column, Table
from kdray.storage.files import replace_file
from kdray.tasks.answers import Answer, Continuation, Progress
from kdray.tasks.kept_thresholds import read_thresholds
from kdray.tasks.task import Outputs

CHUNK = 2_048
"""Texts that are tokenised together; within a chunk, batches have texts of similar length."""
ENDINGS = (".csv", ".jsonl", ".parquet")
"""Formats that can be written."""


T = TypeVar("T")


class Predictor:
    """A chosen student that is loaded in one of its forms: a `LoadedStudent`."""

    def __init__(self, student: Shipped, form: str, batch_size: int, continuation: Continuation | None = None) -> None:
        self.student, self.batch_size = student, batch_size
        self.continuation = continuation or Continuation()
        self.model = open_form(student.model, form)
        self.tokenizer = student.task.tokenizer(student.folder)
        self.tokenizer.padding_side = "right"
        self._thresholds_C = read_thresholds(student.model.config())
        self.labels = student.task.model_labels(student.folder)

    def outputs(self, columns: TextColumns, on_progress: Progress = lambda share: None) -> Outputs:
        """Compute the outputs for all answers to these texts; `on_progress` receives the complete share of them."""
        encoded = self.student.task.encode(self.tokenizer, columns)
        logits = self.read_rows(encoded, lambda logits_AxC: np.asarray(logits_AxC.numpy()), on_progress)
        return Outputs(np.concatenate(logits), self._thresholds_C)

    def answers(
        self, texts: Sequence[Any], pairs: Sequence[str] | None, on_progress: Callable[[int], None] = lambda done: None
    ) -> Iterator[Answer]:
        """Predict the answer for each text; a tagger also accepts lists of words as texts.

        `pairs` are the second texts, None for single texts. `on_progress` receives the number of complete texts.
        """
        task = self.student.task
        for start in range(0, len(texts), CHUNK):
            rows = slice(start, start + CHUNK)
            columns = task.columns_of(texts[rows], None if pairs is None else pairs[rows])
            yield from task.reply(self, columns, _progress_from(start, len(texts[rows]), on_progress))

    def read_rows(
        self, encoded: Encoded, read: Callable[[Tensor], T], on_progress: Progress, at_once: int | None = None
    ) -> list[T]:
        """What `read` makes of the logits at the answers of each encoded row (A x C).

        `on_progress` receives the complete share of the rows. At most `at_once` rows are in a batch.
        """
        size = min(self.batch_size, at_once or self.batch_size)
        count = len(encoded.inputs["input_ids"])
        values: dict[int, T] = {}
        # Rows of similar length share a batch, which needs less padding.
        order = np.argsort([-len(ids) for ids in encoded.inputs["input_ids"]], kind="stable")
        for first in range(0, count, size):
            batch = order[first : first + size]
            inputs = {name: [list(values[row]) for row in batch] for name, values in encoded.inputs.items()}
            for row, logits in zip(batch.tolist(), self._batch_logits(inputs), strict=True):
                values[row] = read(logits[None] if encoded.places is None else logits[list(encoded.places[row])])
            on_progress(min(first + size, count) / count)
        return [values[row] for row in range(count)]

    def _batch_logits(self, encoded: Mapping[str, list[list[int]]]) -> Tensor:
        """The logits of a batch: B x C, or B x L x C."""
        # The tokenizer of a decoder makes no token of an empty text. If all texts of a batch are empty, the batch must
        # be padded to one token, because a model cannot read a sequence of length 0.
        has_tokens = any(next(iter(encoded.values())))
        padding = {} if has_tokens else {"padding": "max_length", "max_length": 1}
        inputs = self.tokenizer.pad(dict(encoded), return_tensors="pt", return_attention_mask=True, **padding)
        with evaluation_mode(self.model):
            logits: Tensor = self.model(**inputs).logits
            return logits.float()


def _progress_from(start: int, count: int, on_progress: Callable[[int], None]) -> Callable[[float], None]:
    """A function that reports the complete share of `count` texts after `start` other ones."""
    return lambda share: on_progress(start + int(share * count))


def check_text(text: str) -> str:
    """Return this text of the command line. Raises DataError if it is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{text.encode(errors='replace').decode()!r}: the text is not UTF-8. Give it in UTF-8."
        ) from None
    return text


def check_pairs(student: Shipped, texts: Sequence[str], pairs: Sequence[str]) -> Sequence[str] | None:
    """Return the second texts, None for a student of single texts. Raises SpecError for pairs that do not fit."""
    if student.task.pair is None:
        if pairs:
            raise SpecError("--pair: this student reads single texts, not pairs. Leave out --pair.")
        return None
    if len(pairs) != len(texts):
        raise SpecError(
            f"--pair: this student reads pairs ({student.task.text}, {student.task.pair}), but there are "
            f"{len(texts)} texts and {len(pairs)} second texts. Give --pair TEXT once for each text, in the same order."
        )
    return pairs


def read_lines(stream: BinaryIO, student: Shipped) -> Iterator[tuple[list[str], list[str] | None]]:
    """Read chunks of texts and their second texts from lines of UTF-8; a tab separates the texts of a pair.

    The second texts are None for a student of single texts. Raises DataError for a line that is not UTF-8 or no pair.
    """
    numbered = enumerate(stream, 1)
    while chunk := list(islice(numbered, CHUNK)):
        rows = [_parse_line(line, number, student) for number, line in chunk]
        yield [text for text, _ in rows], [pair or "" for _, pair in rows] if student.task.pair else None


@dataclass(frozen=True)
class WrittenFile:
    """The result of `predict_file`."""

    rows: int
    note: str | None
    """What was recognised in the file and changed in cells, for the user; None for nothing."""


def predict_file(
    predictor: Predictor,
    source: Path,
    target: Path,
    reading: Reading,
    on_progress: Callable[[int, int], None],
    *,
    raw: bool = False,
) -> WrittenFile:
    """Write the rows of the file `source` with their predictions to the file `target`.

    Without names in `reading`, the columns of a file without a header are those of the sweep's data. `on_progress`
    receives the number of complete rows and of all rows. In a csv file, a cell that a spreadsheet would take for a
    formula begins with an apostrophe, unless `raw`. The task decides the new columns; the first one is `predicted`.
    Raises SpecError for a target that cannot be written, DataError for a source that cannot be read.
    """
    check_target(source, target)
    columns = reading.columns or predictor.student.data.columns
    task = predictor.student.task
    with _names_of_options():
        table = _read_table(source, reading.model_copy(update={"columns": columns}))
        _check_columns(table, [name for name in (task.text, task.pair) if name])
        texts, pairs = task.texts_to_predict(table)
    if not texts:
        raise DataError(f"{source}: no rows in it. Give a file with at least one text.")
    new_columns: dict[str, list[Any]] = {name: [] for name in task.answer_columns(predictor.labels)}
    taken = [name for name in new_columns if name in table.columns]
    if taken:
        raise DataError(
            f"{source}: it already has a column {taken[0]!r}, which kdray adds. Rename or remove that column."
        )
    result = {name: _cells(column) for name, column in table.columns.items()}
    for answer in predictor.answers(texts, pairs, lambda done: on_progress(done, len(texts))):
        for name, value in answer.columns().items():
            new_columns[name].append(value)
    result |= new_columns
    note = None
    if target.suffix == ".csv" and not raw:
        result, note = _without_formulas(result)
    with replace_file(target) as file:
        _WRITERS[target.suffix](file, result)
    notes = [*table.notes, *([note] if note else [])]
    return WrittenFile(len(texts), " ".join(notes) or None)


def check_target(source: Path, target: Path) -> None:
    """Raise SpecError for a target that cannot be written. Call it before anything is read."""
    if target.suffix not in ENDINGS:
        raise SpecError(
            f"--to {target}: cannot write files ending in {target.suffix!r}. Allowed: {', '.join(ENDINGS)}."
        )
    if target.exists() and source.exists() and target.samefile(source):
        raise SpecError(f"--to {target}: is the input file. Name another file.")
    if target.is_dir():
        raise SpecError(f"--to {target}: is a folder. Name a file.")
    if not target.parent.is_dir():
        raise SpecError(f"--to {target}: there is no folder {target.parent}. Create it, or name another file.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise SpecError(f"--to {target}: you may not write into {target.parent.absolute()}. Name another folder.")


def _parse_line(line: bytes, number: int, student: Shipped) -> tuple[str, str | None]:
    text = decode_line(line, f"standard input, line {number}")
    if student.task.pair is None:
        return text, None
    first, tab, second = text.partition("\t")
    if not tab:
        raise DataError(f"standard input, line {number}: this student reads pairs; put a tab between the two texts.")
    return first, second


def _read_table(source: Path, reading: Reading) -> Table:
    if not source.is_file():
        raise DataError(f"{source}: no such file. Give a file ending in {READABLE}; `-` reads lines.")
    return read_file(source, reading)


@contextmanager
def _names_of_options() -> Iterator[None]:
    """Replace settings of a sweep in the message of a DataError by the options of the command."""
    try:
        yield
    except DataError as error:
        message = str(error).removeprefix("data.source ")
        for name in Reading.model_fields:
            message = message.replace(f"data.{name}", f"--{name.replace('_', '-')}")
        raise DataError(message) from None


def _check_columns(table: Table, names: Sequence[str]) -> None:
    """Raise DataError if one of these columns is missing."""
    for name in names:
        if table.column(name) is None:
            raise DataError(
                f"{table.where}: no column {name!r}, which this student reads; the file has the columns "
                f"{', '.join(table.columns)}. {table.hint}Rename the column with the texts; a file without a header "
                f"needs --columns."
            )


def _cells(column: Column) -> list[Any]:
    """The cells as Python values. Other columns than the texts may contain invalid characters, which are replaced."""
    # JSON may contain half of a surrogate pair, such as a cut emoji, which cannot be encoded.
    return [_valid_cell(cell) for cell in (column if isinstance(column, list) else column.to_pylist())]


def _valid_cell(cell: Any) -> Any:
    if isinstance(cell, str):
        return cell.encode(errors="replace").decode()
    if isinstance(cell, bytes):
        return cell.decode(errors="replace")
    if isinstance(cell, list):
        return [_valid_cell(item) for item in cell]
    if isinstance(cell, dict):
        return {_valid_cell(key): _valid_cell(value) for key, value in cell.items()}
    return cell


def _without_formulas(columns: Mapping[str, Sequence[Any]]) -> tuple[dict[str, list[Any]], str | None]:
    """The columns without formulas of a spreadsheet, and the note about it; None if there are no formulas."""
    cells = (cell for name, column in columns.items() for cell in (name, *column))
    formulas = [cell for cell in cells if is_formula(cell)]
    safe = {csv_cell(name): [csv_cell(cell) for cell in column] for name, column in columns.items()}
    if not formulas:
        return safe, None
    return safe, (
        f"{len(formulas):,} cells now begin with an apostrophe, because a spreadsheet would take them for formulas, "
        f"such as {printable(formulas[0], 60)!r}. Write them as they are with --raw."
    )


def _write_csv(file: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write the columns; a cell with a list or an object is written as JSON."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        # `_without_formulas` has seen the cells before, unless the user wants them raw.
        rows = ([_csv_cell(cell) for cell in row] for row in zip(*columns.values(), strict=True))
        write_csv(stream, [list(columns), *rows], raw=True)


def _csv_cell(cell: Any) -> Any:
    return json.dumps(cell, ensure_ascii=False, default=str) if isinstance(cell, list | dict) else cell


def _write_jsonl(file: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    rows: Iterable[tuple[Any, ...]] = zip(*columns.values(), strict=True)
    with file.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False, default=str) + "\n")


def _write_parquet(file: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    try:
        table = pa.table({name: pa.array(values) for name, values in columns.items()})
    except pa.ArrowException as error:
        raise DataError(
            f"--to: a column has cells of several types, but parquet needs one ({error}). Write jsonl instead."
        ) from None
    pa.parquet.write_table(table, file)


_WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
