"""What a chosen student says of new texts: of a few, of lines as they come, or of a file, written to another one.

Reading files is `sources`' business and checking cells `cells`'; in which form the student is run `export.forms`'s.
"""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from transformers import AutoTokenizer

from kdray.data.cells import text_column
from kdray.data.sources import SUFFIXES, Column, Table, decode_line, open_source
from kdray.errors import DataError, SpecError
from kdray.evaluation.outputs import evaluation_mode
from kdray.export.forms import Form, open_form
from kdray.export.shipped import Shipped
from kdray.storage.files import replace_file

CHUNK = 2_048
"""Texts that are tokenised at once, and put into batches by length."""
LABEL, PROBABILITY = "predicted", "probability"
ENDINGS = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Answer:
    """What the student says of one text."""

    label: str
    probability: float


class Predictor:
    """A chosen student in one of its forms, ready to be asked."""

    def __init__(self, student: Shipped, form: Form, batch_size: int) -> None:
        self.student, self._batch_size = student, batch_size
        self._model = open_form(student.model, form)
        self._tokenizer = AutoTokenizer.from_pretrained(student.folder, trust_remote_code=False, padding_side="right")
        self.labels = student.task.model_labels(student.folder)

    def probabilities(
        self, texts: Sequence[str], pairs: Sequence[str] | None, on_progress: Callable[[int], None] = lambda done: None
    ) -> np.ndarray:
        """N x C: how likely each label is, by the softmax of the logits; `on_progress` is told how many are done."""
        found_NxC = np.empty((len(texts), len(self.labels)), np.float32)
        for start in range(0, len(texts), CHUNK):
            rows = slice(start, start + CHUNK)
            encoded = self.student.task.encode(
                self._tokenizer, list(texts[rows]), None if pairs is None else list(pairs[rows])
            )
            order = np.argsort([-len(ids) for ids in encoded["input_ids"]], kind="stable")
            for first in range(0, len(order), self._batch_size):
                batch = order[first : first + self._batch_size]
                found_NxC[start + batch] = self._of_batch(
                    {name: [of[row] for row in batch] for name, of in encoded.items()}
                )
                on_progress(start + min(first + self._batch_size, len(order)))
        return found_NxC

    def answers(self, texts: Sequence[str], pairs: Sequence[str] | None) -> list[Answer]:
        """The likeliest label of each text."""
        return self.named(self.probabilities(texts, pairs))

    def named(self, probabilities_NxC: np.ndarray) -> list[Answer]:
        """The likeliest label of each row."""
        return [Answer(self.labels[int(row_C.argmax())], float(row_C.max())) for row_C in probabilities_NxC]

    def _of_batch(self, encoded: Mapping[str, list[list[int]]]) -> np.ndarray:
        some = any(next(iter(encoded.values())))  # of empty texts alone a decoder's tokenizer makes no token at all
        wide = {} if some else {"padding": "max_length", "max_length": 1}
        inputs = self._tokenizer.pad(dict(encoded), return_tensors="pt", return_attention_mask=True, **wide)
        with evaluation_mode(self._model):
            logits_BxC = self._model(**inputs).logits
        return np.asarray(torch.softmax(logits_BxC.float(), dim=-1).numpy())


def check_text(text: str) -> str:
    """This text of the command line. Raises DataError where it was not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{text.encode(errors='replace').decode()!r}: the text is not UTF-8. Say it in UTF-8."
        ) from None
    return text


def check_pairs(student: Shipped, texts: Sequence[str], pairs: Sequence[str]) -> Sequence[str] | None:
    """The second texts, one for each text, where the student reads pairs; else None. Raises SpecError."""
    if student.task.pair is None:
        if pairs:
            raise SpecError("--pair: this student was taught single texts, not pairs. Leave it away.")
        return None
    if len(pairs) != len(texts):
        raise SpecError(
            f"--pair: this student reads pairs ({student.task.text}, {student.task.pair}), and there are "
            f"{len(texts)} texts and {len(pairs)} second ones. Give --pair TEXT once for each text, in the same order."
        )
    return pairs


def read_lines(stream: BinaryIO, student: Shipped) -> Iterator[tuple[list[str], list[str] | None]]:
    """Texts, and their second ones, from lines of UTF-8; those of a pair have a tab between them. Raises DataError."""
    numbered = enumerate(stream, 1)
    while chunk := list(islice(numbered, CHUNK)):
        rows = [_line(line, number, student) for number, line in chunk]
        yield [text for text, _ in rows], [pair or "" for _, pair in rows] if student.task.pair else None


def predict_file(
    predictor: Predictor, source: Path, target: Path, columns: Sequence[str], on_progress: Callable[[int, int], None]
) -> int:
    """Write the rows of one file to another, with what the student says of each; how many there are.

    Added are `predicted`, `probability` and `probability_LABEL` for every label. Raises SpecError and DataError.
    """
    check_target(source, target)
    table = _read(source, columns or predictor.student.data.columns)
    task = predictor.student.task
    texts = _texts(table, task.text)
    pairs = _texts(table, task.pair) if task.pair else None
    if not texts:
        raise DataError(f"{source}: no rows in it. Give a file with at least one text.")
    added = (LABEL, PROBABILITY, *(f"{PROBABILITY}_{label}" for label in predictor.labels))
    taken = [name for name in added if name in table.columns]
    if taken:
        raise DataError(f"{source}: it has a column {taken[0]!r}, which is to be added. Rename or remove that one.")
    found_NxC = predictor.probabilities(texts, pairs, lambda done: on_progress(done, len(texts)))
    answers = predictor.named(found_NxC)
    result = {name: _values(column) for name, column in table.columns.items()}
    result[LABEL] = [answer.label for answer in answers]
    result[PROBABILITY] = [round(answer.probability, 6) for answer in answers]
    result |= {
        f"{PROBABILITY}_{label}": [round(float(value), 6) for value in found_NxC[:, number]]
        for number, label in enumerate(predictor.labels)
    }
    with replace_file(target) as file:
        _WRITERS[target.suffix](file, result)
    return len(texts)


def check_target(source: Path, target: Path) -> None:
    """Raise SpecError for a file that cannot be written to, before anything is read."""
    if target.suffix not in ENDINGS:
        raise SpecError(
            f"--to {target}: cannot write files ending in {target.suffix!r}. Allowed: {', '.join(ENDINGS)}."
        )
    if target.exists() and source.exists() and target.samefile(source):
        raise SpecError(f"--to {target}: is the file that is read. Name another one.")
    if target.is_dir():
        raise SpecError(f"--to {target}: is a folder. Name a file.")
    if not target.parent.is_dir():
        raise SpecError(f"--to {target}: there is no folder {target.parent}. Make it, or name another file.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise SpecError(f"--to {target}: you may not write into {target.parent.absolute()}. Name another place.")


def _line(line: bytes, number: int, student: Shipped) -> tuple[str, str | None]:
    text = decode_line(line, f"standard input, line {number}")
    if student.task.pair is None:
        return text, None
    first, tab, second = text.partition("\t")
    if not tab:
        raise DataError(f"standard input, line {number}: this student reads pairs; put a tab between the two texts.")
    return first, second


def _read(source: Path, columns: Sequence[str]) -> Table:
    if not source.is_file():
        raise DataError(f"{source}: no such file. Give a file ending in {', '.join(SUFFIXES)}; `-` reads lines.")
    try:
        (table,) = open_source(str(source), None, None, columns).read("train")
    except DataError as error:  # it speaks of settings of a sweep
        sentence = str(error).removeprefix("data.source ").replace("data.columns", "--columns")
        raise DataError(sentence) from None
    return table


def _texts(table: Table, name: str) -> list[str]:
    if name not in table.columns:
        raise DataError(
            f"{table.where}: no column {name!r}, which this student was taught to read; there are "
            f"{', '.join(table.columns)}. Rename the right one; a file without a header needs --columns."
        )
    return list(text_column(table, name, "task.text").to_pylist())


def _values(column: Column) -> list[Any]:
    """The cells as Python values; what a file holds beside the texts need not be UTF-8."""
    if isinstance(column, list):  # half of a pair of surrogates, such as a cut emoji, is no character
        return [cell.encode(errors="replace").decode() if isinstance(cell, str) else cell for cell in column]
    return [cell.decode(errors="replace") if isinstance(cell, bytes) else cell for cell in column.to_pylist()]


@dataclass(frozen=True)
class _Lines:
    """Where a csv writer writes: it quotes what holds \\r only while that is in what it ends its lines with."""

    stream: TextIO

    def write(self, line: str) -> int:
        return self.stream.write(line.removesuffix("\r\n") + "\n")


def _write_csv(file: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(_Lines(stream))
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


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
            f"--to: a column has no one type, as parquet needs it ({error}). Write jsonl instead."
        ) from None
    pa.parquet.write_table(table, file)


_WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
