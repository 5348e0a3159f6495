"""Writes changed copies of texts, in chunks, so that memory does not grow with the number of texts.

A copy depends on the seed, its number and the row alone. So copy 2 is the same whether two or eight copies are asked
for, and a text has the same copies if rows are added behind it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, TypeAlias

import pyarrow as pa

from kdray.augmentation.lexicon import Lexicon
from kdray.augmentation.masked_model import import_masked_lm
from kdray.augmentation.settings import Augmentation, check_ways
from kdray.augmentation.texts import changed_cell, words_of
from kdray.augmentation.way import WayInputs, draw_number
from kdray.augmentation.ways import WAYS
from kdray.data.words import Words
from kdray.models.pretrained import Pretrained
from kdray.sources.tables import short_repr
from kdray.storage.files import fingerprint
from kdray.storage.paths import StoragePaths

FORMAT = 1
"""Part of every key: increase it when a way gives other copies, so that older ones are not read."""
ROWS_AT_ONCE = 2048
"""Rows in one chunk."""

Cells: TypeAlias = dict[str, list[Any]]
"""The columns `text` and `pair` of a chunk: texts, or lists of words."""


@dataclass(frozen=True)
class CopyInputs:
    """What copies are made with. A pickle of it is small: it has the paths of the models."""

    augmentation: Augmentation
    teacher: Pretrained
    masked_lm: Pretrained | None = None
    """The masked language model in the cache, if a way needs one."""

    @property
    def key(self) -> str:
        """A fingerprint of everything that the copies of a text depend on; the number of copies is no part of it."""
        settings = self.augmentation
        return fingerprint(
            FORMAT,
            settings.ways,
            settings.share,
            settings.seed,
            self.teacher.key if settings.needs_teacher else None,
            self.masked_lm.key if self.masked_lm else None,
        )


def copy_inputs(augmentation: Augmentation, teacher: Pretrained, paths: StoragePaths) -> CopyInputs:
    """Find and check what the ways need; a masked language model is copied into the storage's cache.

    Raises TeacherError for a model, and SpecError for a way, that cannot be used.
    """
    masked_lm = None
    if augmentation.needs_masked_lm and augmentation.model is not None:
        masked_lm = import_masked_lm(augmentation.model, augmentation.revision, paths)
    inputs = CopyInputs(augmentation, teacher, masked_lm)
    Copier(inputs)  # only for the errors
    return inputs


@dataclass(frozen=True)
class Copies:
    """The copies of some rows, in the order of the rows."""

    table: pa.Table
    """The columns `text`, and `pair` for pairs of texts, of the same types as those of the rows."""
    unchanged: int
    """How many copies equal their row, because no way can change it: most of them have a single word, or none."""
    example: str | None
    """The text of the first such row, shortened."""


@dataclass(frozen=True)
class _Count:
    """What is known of one copy of all rows."""

    rows: int
    unchanged: int
    example: str | None


@dataclass(frozen=True)
class _Plan:
    """How the copy of a row is made."""

    ways: list[str]
    """The ways in the order in which they are tried."""
    columns: list[str]
    """The texts of the row that change."""


class Copier:
    """Makes copies of texts. It keeps what its ways have loaded and computed for the next texts."""

    def __init__(self, inputs: CopyInputs, device: str = "cpu", reader: Any = None) -> None:
        """`device` is where a masked language model computes.

        `reader` is the tokenizer of the model that reads the copies, if it is not the teacher: only tokens such as
        [MASK] in a copy depend on it. Raises SpecError for a way that a tokenizer does not allow. Models are loaded
        when they are needed.
        """
        self._settings = inputs.augmentation
        way_inputs = WayInputs(Lexicon(inputs.teacher), self._settings.share, inputs.masked_lm, device, reader)
        self._ways = {name: WAYS[name](way_inputs) for name in self._settings.ways}
        self._made: dict[int, _Count] = {}
        """The number of a copy -> what was counted when it was made last."""

    def copy(self, texts: pa.Table, number: int) -> pa.Table:
        """Copy `number` of each row, as `copies` gives it, as one table."""
        parts = list(self.copies(texts, number))
        example = next((part.example for part in parts if part.example is not None), None)
        self._made[number] = _Count(texts.num_rows, sum(part.unchanged for part in parts), example)
        return pa.concat_tables(part.table for part in parts) if parts else texts

    def copies(self, texts: pa.Table, number: int) -> Iterator[Copies]:
        """Copy `number` (from 1) of each row, `ROWS_AT_ONCE` rows at a time.

        `texts` has the column `text`, and `pair` for pairs of texts. Of a pair, the first text changes, or the second
        one, or both, with equal chance (Tang et al. 2019, arXiv:1903.12136). Raises SpecError for a way that does not
        fit these texts.
        """
        check_ways(self._settings, are_words=pa.types.is_nested(texts.schema.field("text").type))
        for start in range(0, texts.num_rows, ROWS_AT_ONCE):
            yield self._copies_of_chunk(texts.slice(start, ROWS_AT_ONCE), number, start)

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence about the copies that `copy` made and that equal their text, if there are any."""
        unchanged = sum(each.unchanged for each in self._made.values())
        if not unchanged:
            return ()
        rows = sum(each.rows for each in self._made.values())
        example = next(each.example for each in self._made.values() if each.unchanged)
        return (
            f"augmentation: {unchanged} of {rows} copies equal their text, because no way of augmentation.ways can "
            f"change it, such as {example}.",
        )

    def _copies_of_chunk(self, chunk: pa.Table, number: int, start: int) -> Copies:
        cells: Cells = {name: chunk[name].to_pylist() for name in chunk.column_names}
        copies = self._change(cells, number, start)
        unchanged = _equal_rows(cells, copies, range(chunk.num_rows))
        table = pa.table([pa.array(copies[field.name], field.type) for field in chunk.schema], schema=chunk.schema)
        return Copies(table, len(unchanged), short_repr(cells["text"][unchanged[0]]) if unchanged else None)

    def _change(self, cells: Cells, number: int, start: int) -> Cells:
        """The changed cells; the first row of them is row `start` of all."""
        words = {name: [words_of(cell) for cell in column] for name, column in cells.items()}
        copies = {name: list(column) for name, column in cells.items()}
        rows = range(len(cells["text"]))
        plans = [self._plan({name: words[name][row] for name in words}, number, start + row) for row in rows]
        waiting = [row for row in rows if plans[row].columns]
        for turn in range(len(self._ways)):
            for name_of_way, way in self._ways.items():
                chosen = [row for row in waiting if plans[row].ways[turn] == name_of_way]
                places = [(row, name) for row in chosen for name in plans[row].columns]
                draws = [self._random(number, start + row, name, name_of_way) for row, name in places]
                changed = way.change([words[name][row] for row, name in places], draws)
                for (row, name), new in zip(places, changed, strict=True):
                    copies[name][row] = changed_cell(cells[name][row], words[name][row], new)
            waiting = _equal_rows(cells, copies, waiting)
        return copies

    def _plan(self, words: dict[str, Words], number: int, row: int) -> _Plan:
        draw = self._random(number, row)
        order = {way: draw.random() for way in self._ways}
        # A text of one word has little to change, so the other text of the pair does.
        names = [name for name in words if len(words[name]) > 1] or [name for name in words if len(words[name])]
        choices = [names[:1], names[1:], names] if len(names) == 2 else [names]
        return _Plan(sorted(order, key=order.__getitem__), choices[draw_number(len(choices), draw)])

    def _random(self, *parts: object) -> Random:
        """The random numbers of a row, or of a text of it."""
        # A text gives the same numbers in every process, which hash() of these parts would not.
        return Random(" ".join(map(str, (self._settings.seed, *parts))))  # noqa: S311 - words, no secrets


def _equal_rows(cells: Cells, copies: Cells, rows: Iterable[int]) -> list[int]:
    """The rows whose copy equals them in all columns."""
    return [row for row in rows if all(copies[name][row] == column[row] for name, column in cells.items())]
