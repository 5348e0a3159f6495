"""The answers of a teacher that is a file: read, checked row by row, and joined with the rows of a sweep.

`transfer.write_transfer_set` writes them as the transfer set that a model would have written.
Shapes: A answers of a split, C outputs.
"""

import glob
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from kdray.data.number_cells import number_column
from kdray.data.rows import SPLITS
from kdray.data.tokens import TextBlocks
from kdray.errors import DataError, TeacherError
from kdray.losses.distribution import Distribution
from kdray.sources.opening import open_source
from kdray.sources.tables import Table, short_repr
from kdray.storage.files import fingerprint
from kdray.tasks.task import Task
from kdray.teacher.answer_cells import SETTING, StatedAnswers, cells_of, stated_answers
from kdray.teacher.answer_file import AnswerFile

SPLIT = "split"
"""The column with the split of a row, beside its number."""

Key: TypeAlias = tuple[Any, ...]
"""What a row of the file and a row of the sweep have in common: their texts, or their split and number."""


@dataclass(frozen=True)
class Answers:
    """The outputs of a teacher for all rows of a sweep."""

    logits: Mapping[str, np.ndarray]
    """Split -> the logits of its answers (A x C, float32), in the order of `tokens.TokenSet.all_rows`."""
    key: str
    """A fingerprint of the rows and of these logits."""
    notes: tuple[str, ...]
    """One sentence for everything that was changed, left out or noticed."""

    def logits_of(self, split: str, answers: np.ndarray) -> np.ndarray:
        """See `transfer.LogitsOf`."""
        return self.logits[split][answers]


def read_answers(file: AnswerFile, task: Task, text: TextBlocks) -> Answers:
    """The answers in this file for all these rows.

    Raises TeacherError if there is no such file, and for text with changed copies, which no file can answer; DataError
    with file and row for an answer that is missing, doubled or none.
    """
    # The gold decides the units of the outputs, not how answers are stated.
    distribution = task.distribution(np.zeros(1))
    outputs = text.labels or task.gold_columns[:1]
    reader = _Reader(file, task, outputs, distribution)
    for split, table in _tables(file):
        reader.add(split, table)
    logits = {split: np.concatenate(list(reader.join(split, text))) for split in SPLITS}
    digests = {
        split: hashlib.sha256(np.ascontiguousarray(each).tobytes()).hexdigest() for split, each in logits.items()
    }
    return Answers(logits, fingerprint("answers", text.key, text.more_key, digests), tuple(reader.notes()))


def _tables(file: AnswerFile) -> Iterator[tuple[str, Table]]:
    """Each table of the source, and the name of its split there."""
    if not Path(file.source).expanduser().exists() and not glob.glob(str(Path(file.source).expanduser())):
        raise TeacherError(
            f"{SETTING} {file.source}: no such file or folder. Give the file with the teacher's answers."
        )
    try:
        source = open_source(file.source, file)
    except DataError as error:
        raise DataError(str(error).replace("data.source", SETTING)) from None
    for split in source.splits:
        for table in source.read(split):
            yield split, table


@dataclass
class _Reader:
    """Collects the answers of all tables, and finds those of a row."""

    file: AnswerFile
    task: Task
    outputs: Sequence[str]
    distribution: Distribution
    _logits: dict[Key, np.ndarray] = field(default_factory=dict)
    _places: dict[Key, tuple[str, int]] = field(default_factory=dict)
    """The file and the row of each answer."""
    _used: set[Key] = field(default_factory=set)
    _raised: int = 0
    """How many probabilities were below the floor."""
    _unlisted: int = 0
    """How many answers list some labels only."""
    _certain: int = 0
    """How many answers have probabilities of 0 and 1 only."""
    _answers: int = 0

    def add(self, split: str, table: Table) -> None:
        """Check the answers of a table, and add them."""
        stated = stated_answers(table, self.file, self.outputs)
        logits_AxC = self._checked(table, stated)
        for row, key in enumerate(self._keys(split, table)):
            answers_AxC = logits_AxC[stated.starts[row] : stated.starts[row + 1]]
            known = self._logits.get(key)
            if known is None:
                self._logits[key], self._places[key] = answers_AxC, (table.where, row)
            elif not np.array_equal(known, answers_AxC):
                raise DataError(
                    f"{table.where}, row {row + 1}: answers {_described(key)} otherwise than {self._place_of(key)}. "
                    "Keep one answer for each text."
                )

    def _place_of(self, key: Key) -> str:
        where, row = self._places[key]
        return f"{where}, row {row + 1}"

    def _checked(self, table: Table, stated: StatedAnswers) -> np.ndarray:
        """The answers as logits (A x C). Raises DataError, with file and row, for one that is none."""
        values_AxC = stated.values_AxC
        are_logits = self.file.form == "logits" and not stated.are_listed
        if stated.are_listed:
            self._unlisted += int(np.isnan(values_AxC).any(axis=1).sum())
            values_AxC = self.distribution.with_unlisted(values_AxC)
        problem = _logit_problem(values_AxC) if are_logits else self.distribution.problem_of(values_AxC)
        if problem is not None:
            remedy = "" if are_logits else " If the numbers are logits, say form='logits'."
            raise DataError(f"{_place(table, stated, problem[0])}: {problem[1]}. Correct that row.{remedy}")
        self._answers += len(values_AxC)
        if are_logits:
            return values_AxC.astype(np.float32)
        if self._has_probabilities:
            self._raised += int((values_AxC < self.file.floor).any(axis=1).sum())
            self._certain += int(np.isin(values_AxC, (0.0, 1.0)).all(axis=1).sum())
        return self.distribution.outputs_stating(values_AxC, self.file.floor)

    @property
    def _has_probabilities(self) -> bool:
        """Whether temperature has a meaning for the outputs of the task: numbers have none."""
        return "temperature" in self.distribution.settings

    def _keys(self, split: str, table: Table) -> list[Key]:
        if self.file.id is None:
            names = {name: value for name in ("text", "pair") if (value := getattr(self.file, name)) is not None}
            checked = self.task.read_texts_only(table, names)
            pairs = None if checked.pairs is None else checked.pairs.to_pylist()
            return _text_keys(checked.texts.to_pylist(), pairs)
        ids = number_column(table, self.file.id, f"{SETTING}.id")
        splits = table.column(SPLIT)
        names_N = [split] * len(ids) if splits is None else [str(cell) for cell in cells_of(splits)]
        bad = next((row for row, number in enumerate(ids) if not float(number).is_integer()), None)
        if bad is not None:
            raise DataError(f"{table.where}, row {bad + 1}: {ids[bad]:g} is no row number. Correct that row.")
        return [(name, int(number)) for name, number in zip(names_N, ids, strict=True)]

    def join(self, split: str, text: TextBlocks) -> Iterator[np.ndarray]:
        """The logits of the rows of a split, block after block. Raises DataError for rows without an answer."""
        for number, block in enumerate(text.blocks(split)):
            if number > 1:
                raise TeacherError(
                    f"{SETTING} {self.file.source}: a file has no answers for changed copies of the texts. Set "
                    "augmentation.copies to 0, or give a model as the teacher."
                )
            if not len(block["id"]):
                continue
            yield self._join_block(split if number == 0 else f"{split} without labels", block, split)

    def _join_block(self, name: str, block: Mapping[str, Any], split: str) -> np.ndarray:
        texts = list(block["text"])
        pairs = list(block["pair"]) if "pair" in block else None
        keys = _text_keys(texts, pairs) if self.file.id is None else [(split, int(number)) for number in block["id"]]
        missing = [row for row, key in enumerate(keys) if key not in self._logits]
        if missing:
            row = missing[0]
            raise DataError(
                f"{SETTING} {self.file.source}: {len(missing):,} of the {len(keys):,} texts of {name} have no "
                f"answer, such as {short_repr(texts[row])} ({self._named(split, int(block['id'][row]))}). Add their "
                "answers; kdray.teacher.exporting.texts_to_answer writes the texts of a sweep."
            )
        for key, cell in zip(keys, texts, strict=True):
            count = len(cell) if isinstance(cell, list) else 1
            if (given := len(self._logits[key])) != count:
                raise DataError(
                    f"{self._place_of(key)}: has {given} answers, but {short_repr(cell)} needs {count}: one for "
                    f"{'each word' if isinstance(cell, list) else 'the text'}. Correct that row."
                )
        self._used.update(keys)
        return np.concatenate([self._logits[key] for key in keys])

    def _named(self, split: str, number: int) -> str:
        return f"row {number + 1} of {split}" if self.file.id is None else f"split {split!r}, {self.file.id} {number}"

    def notes(self) -> Iterator[str]:
        """What the user should know about the answers, after all splits were joined."""
        where = self.file.source
        if unused := len(self._logits) - len(self._used):
            yield f"{where}: {unused:,} of its {len(self._logits):,} answers are for other texts."
        if self._unlisted:
            yield f"{where}: {self._unlisted:,} answers list some labels; the others share what is left."
        if self._answers and self._certain == self._answers:
            yield (
                f"{where}: all answers are labels only, with probabilities of 0 and 1. A temperature then says nothing "
                f"about the text: it only smooths the labels (0 is read as {self.file.floor:g})."
            )
        elif self._raised:
            yield (
                f"{where}: {self._raised:,} of {self._answers:,} answers have a probability below {self.file.floor:g}, "
                f"which is read as {self.file.floor:g} (teacher.outputs.floor): 0 has no finite logit."
            )


def _text_keys(texts: Sequence[Any], pairs: Sequence[str] | None) -> list[Key]:
    """A key for each row. White space around a text does not count: services and spreadsheets drop it."""
    first = [tuple(text) if isinstance(text, list) else text.strip() for text in texts]
    return [(each,) for each in first] if pairs is None else [(a, b.strip()) for a, b in zip(first, pairs, strict=True)]


def _described(key: Key) -> str:
    return short_repr(" ".join(key[0]) if isinstance(key[0], tuple) else key[0] if len(key) == 1 else key)


def _place(table: Table, stated: StatedAnswers, answer: int) -> str:
    """The file, the row and, in a row with several answers, the word of this answer."""
    row = stated.row_of(answer)
    words = int(stated.starts[row + 1] - stated.starts[row])
    word = f", word {answer - stated.starts[row] + 1}" if words > 1 else ""
    return f"{table.where}, row {row + 1}{word}"


def _logit_problem(values_AxC: np.ndarray) -> tuple[int, str] | None:
    """The first answer with a number that is no logit in float32, and what is wrong with it."""
    is_wrong_AxC = ~(np.abs(values_AxC) <= np.finfo(np.float32).max)  # true for nan, too
    if not is_wrong_AxC.any():
        return None
    answer, output = (int(index) for index in np.argwhere(is_wrong_AxC)[0])
    return answer, f"{values_AxC[answer, output]:g} is no finite logit"
