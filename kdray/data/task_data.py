"""TaskData: what the data need to know of a task. `kdray.tasks` has the tasks.

Shapes: N rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa

from kdray.data.gold import Gold
from kdray.sources.tables import Table

TextColumns: TypeAlias = Mapping[str, Sequence[Any]]
"""The columns `text` (texts, or lists of words) and `pair` (the second texts, for pairs) of some rows."""


@dataclass(frozen=True)
class CheckedTable:
    """The checked rows of one table."""

    where: str
    texts: pa.Array
    """Texts, or lists of words."""
    pairs: pa.Array | None
    gold: Gold | None
    """None: the table has no gold."""
    notes: tuple[str, ...] = ()
    """One sentence for everything that was recognised or changed although no setting names it."""


@dataclass(frozen=True)
class LabelOrder:
    """The labels of a sweep."""

    labels: tuple[str, ...]
    """Their names, in the order of the model's outputs."""
    numbers: Mapping[str, int]
    """The number of each name that the data may contain."""
    notes: tuple[str, ...] = ()
    """One sentence for everything that was recognised although no setting names it."""
    may_be_new: frozenset[str] = frozenset()
    """The labels that rows of other splits may have, although no training row has them."""


@dataclass(frozen=True)
class Encoded:
    """Rows as token ids: truncated or divided, not padded, and without the attention mask."""

    inputs: Mapping[str, Sequence[Sequence[int]]]
    """Name of an input of the model -> one list of numbers for each encoded row."""
    places: Sequence[Sequence[int]] | None = None
    """The tokens of each encoded row at which the model answers, from 0; None: one answer for the whole row."""
    rows: Sequence[int] | None = None
    """The number of the row that each encoded row is a part of; None: no row was divided."""
    gold: Sequence[Sequence[int]] | None = None
    """The gold at the places of each encoded row, for a task whose gold is its text; None: the data have the gold."""
    begins: Sequence[Sequence[int]] | None = None
    """For each place whether a word begins there (1 or 0); None: it is not needed."""


class TaskData(Protocol):
    """How a task reads its columns and encodes its texts."""

    @property
    def name(self) -> str:
        """The name for tags and sentences, such as "text classification"."""
        ...

    @property
    def cache_key(self) -> tuple[Any, ...]:
        """What the token ids depend on, besides rows, tokenizer and `max_length`."""
        ...

    @property
    def max_length(self) -> int:
        """The maximum number of tokens of one encoded row."""
        ...

    def read(
        self, table: Table, class_names: Sequence[str] | None, may_lack_gold: bool, may_be_empty: bool = False
    ) -> CheckedTable:
        """Check the cells of one table. `class_names` are for a table whose own features have none.

        Raises DataError, with file, row and column, for a column that is missing and for a cell that is wrong. A table
        without the column of the gold is accepted where `may_lack_gold`, and a row with an empty cell there where
        `may_be_empty`.
        """
        ...

    def read_texts_only(self, table: Table, names: Mapping[str, str]) -> CheckedTable:
        """Check the texts of a table, and leave its gold out. `names` has the columns that are called otherwise than
        in the task: text, pair. Raises DataError as `read` does.
        """
        ...

    def class_names(self, table: Table) -> tuple[str, ...] | None:
        """The names that the dataset's own features give to the numbers 0, 1, ... of the gold; None without names."""
        ...

    def order_labels(self, train: Sequence[CheckedTable], class_names: Sequence[str] | None) -> LabelOrder:
        """Decide the order of the labels from the gold of the training rows.

        Raises DataError for labels that no model of this task can learn.
        """
        ...

    def describe_gold(
        self, parts: Sequence[CheckedTable], train: Sequence[CheckedTable], order: LabelOrder
    ) -> Sequence[str]:
        """One sentence for each kind of oddity in the gold of the tables of another split than train.

        `order_labels` does it for train.
        """
        ...

    def encode(self, tokenizer: Any, columns: TextColumns, for_training: bool = False) -> Encoded:
        """Encode rows. Raises SpecError for a tokenizer that the task cannot use.

        `for_training`: as they are learnt from, where that is not as they are measured.
        """
        ...

    def layout(self, tokenizer: Any) -> Mapping[str, Any]:
        """The fields of `Layout` that the task decides, by name: how answers are kept, and how rows are masked."""
        ...

    def lengths(self, tokenizer: Any, columns: TextColumns) -> list[int]:
        """The number of tokens of each text, if it were not truncated."""
        ...

    def describe_division(self, split: str, parts_N: np.ndarray, tokens_N: np.ndarray) -> str | None:
        """A sentence about texts of a split that are divided into several encoded rows; None if there are none.

        Each text is `parts_N` rows with `tokens_N` tokens together.
        """
        ...
