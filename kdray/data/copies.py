"""The text of a sweep with changed copies of it, from which students learn by the teacher's answers."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kdray.data.rows import TRAIN
from kdray.data.splits import Splits, as_dataset
from kdray.data.unlabelled import without_gold
from kdray.storage.files import fingerprint


@dataclass(frozen=True)
class WithCopies:
    """The rows of all splits, with changed copies of the texts of train; see `tokens.TextBlocks`."""

    splits: Splits
    count: int
    """How many copies of each text there are."""
    write: Callable[[pa.Table, int], pa.Table]
    """A function of the texts (columns `text` and `pair`) and the number of a copy, from 1, that gives the copy."""
    copies_key: str
    """A fingerprint of how a copy is made, whatever the count."""

    @property
    def labels(self) -> tuple[str, ...]:
        """See `TextBlocks`."""
        return self.splits.labels

    @property
    def key(self) -> str:
        """See `TextBlocks`."""
        return self.splits.key

    @property
    def more_key(self) -> str:
        """See `TextBlocks`."""
        return fingerprint(self.splits.more_key, self.copies_key, self.count)

    def blocks(self, split: str) -> Iterator[Mapping[str, Any]]:
        """See `TextBlocks`. A copy is written when it is asked for."""
        yield self.splits.columns(split)
        if split != TRAIN:
            return
        labelled, unlabelled = self.splits.train, self.splits.unlabelled
        tables = [labelled.data.table, labelled.data.table.slice(0, 0) if unlabelled is None else unlabelled.data.table]
        yield _columns(tables[1])
        texts = pa.concat_tables(tables)
        first_id = pc.max(texts["id"]).as_py() + 1
        for number in range(1, self.count + 1):
            copy = self.write(texts.drop_columns(["id", "label"]), number)
            yield _columns(without_gold(copy, texts["label"].type, first_id + (number - 1) * texts.num_rows))


def _columns(table: pa.Table) -> Mapping[str, Any]:
    rows = as_dataset(table)
    return {name: rows[name] for name in rows.column_names}
