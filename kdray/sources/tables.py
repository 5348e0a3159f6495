"""A table of raw rows: what every reader returns, and the one way from an Arrow table to it.

`cells` checks the cells; `arrow_types` checks the types.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from kdray.errors import DataError
from kdray.sources.arrow_types import check_schema, decoded_size, plain_column
from kdray.sources.memory import Budget

Column: TypeAlias = list[Any] | pa.ChunkedArray
"""The cells of a column: a list of Python values (from JSON and generators) or an Arrow array (from all other sources).

JSON values stay Python values because Arrow accepts no mixed types: a message can then show the wrong cell.
"""

MOST_COLUMNS = 10_000
LONGEST_REPR = 60
"""Characters."""


@dataclass(frozen=True)
class Table:
    """The rows of one file, or of one split from the hub."""

    where: str
    """The file or split, for messages."""
    columns: Mapping[str, Column]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column -> the names of the numbers 0, 1, ... in it, if the dataset's own features define them."""
    notes: tuple[str, ...] = ()
    """One sentence for everything that the reader recognised although no setting names it."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Further names of columns, such as numbers -> the names in `columns`."""
    hint: str = ""
    """A sentence for the message about a missing column: why this table may have other columns than expected."""

    def column(self, name: str) -> Column | None:
        """The column with this name, None if it is missing; `review.body` is the field `body` of column `review`."""
        name = name if name in self.columns else self.aliases.get(name, name)
        if name in self.columns:
            return self.columns[name]
        # The name of a column may contain dots itself: the longest one that exists is the column.
        parts = name.split(".")
        for count in range(len(parts) - 1, 0, -1):
            head = ".".join(parts[:count])
            if head in self.columns:
                return _inner_column(self.columns[head], parts[count:])
        return None

    @property
    def names(self) -> list[str]:
        """The names that `column` finds: of columns, and of the fields in them."""
        return [name for column, cells in self.columns.items() for name in (column, *_inner_names(column, cells))]


def plain_table(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], where: str, budget: Budget, notes: Sequence[str] = ()
) -> Table:
    """The table of these Arrow record batches, in plain Arrow types. Every Arrow table from outside comes through here.

    The batches must be valid: what reads them from bytes checks that. The schema is checked before the first batch is
    read, and the decoded size of each batch before it is decoded.
    Raises DataError for a type that is not allowed and for rows that need too much memory.
    """
    check_schema(schema, where)
    check_width(len(schema), where)
    plain = []
    for batch in batches:
        budget.use(sum(decoded_size(column) for column in batch.columns), where)
        # Decoded before the next batch is read: each batch of a Parquet file has a dictionary of its own, with all
        # values of the rows before it. A million texts in one row group needed 8 GB in dictionary encoding.
        plain.append(_plain_columns(pa.Table.from_batches([batch])))
    table = pa.concat_tables(plain) if plain else _plain_columns(schema.empty_table())
    return Table(where, dict(zip(table.column_names, table.columns, strict=True)), class_names(schema), tuple(notes))


def _plain_columns(table: pa.Table) -> pa.Table:
    return pa.table([plain_column(column) for column in table.columns], table.column_names)


def class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Column -> the names of its numbers, for the columns that Hugging Face `datasets` has marked as a ClassLabel.

    In a column of lists, the items are marked.
    """
    # Not `datasets.Features.from_arrow_schema`: by this metadata it would read names from any file of this machine, or
    # make as many names as the metadata says.
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"].items()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    named = {name: _item_feature(feature) for name, feature in features}
    return {name: tuple(feature["names"]) for name, feature in named.items() if _has_names(feature)}


def short_repr(value: Any) -> str:
    """The repr of a value, shortened to 60 characters, for a message."""
    try:
        text = repr(value[: LONGEST_REPR + 1] if isinstance(value, str | bytes) else value)
    except RecursionError:
        return f"a {type(value).__name__} with very many levels"
    return text if len(text) <= LONGEST_REPR else f"{text[: LONGEST_REPR - 3]}..."


def check_width(columns: int, where: str) -> None:
    """Raise DataError for a table with more columns than any table of texts has."""
    if columns > MOST_COLUMNS:
        raise DataError(f"{where}: has {columns:,} columns; at most {MOST_COLUMNS:,} are read. Check the delimiter.")


def short_list(names: Sequence[str], most: int = 20) -> str:
    """The names, shortened, for a message: at most `most` of them, and the number of the others."""
    listed = ", ".join(name if len(name) <= LONGEST_REPR else f"{name[: LONGEST_REPR - 3]}..." for name in names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"


def _item_feature(feature: Any) -> Any:
    """The feature of the items if this is the feature of lists, otherwise the feature itself."""
    if isinstance(feature, list) and len(feature) == 1:  # how older versions of `datasets` write lists
        return feature[0]
    is_list = isinstance(feature, dict) and feature.get("_type") in ("List", "LargeList", "Sequence")
    return feature.get("feature") if is_list else feature


def _has_names(feature: Any) -> bool:
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _inner_column(cells: Column, fields: Sequence[str]) -> Column | None:
    if isinstance(cells, list):
        inner = [_inner_cell(cell, fields) for cell in cells]
        # A misspelt name would give a column of nulls; no row has the field then.
        return inner if any(cell is not None for cell in inner) else None
    for name in fields:
        if not pa.types.is_struct(cells.type) or cells.type.get_field_index(name) < 0:
            return None
        cells = plain_column(pc.struct_field(cells, name))
    return cells


def _inner_cell(cell: Any, fields: Sequence[str]) -> Any:
    for name in fields:
        cell = cell.get(name) if isinstance(cell, dict) else None
    return cell


def _inner_names(column: str, cells: Column) -> Iterator[str]:
    if isinstance(cells, list):
        first = next((cell for cell in cells if cell is not None), None)
        yield from (f"{column}.{name}" for name in (first if isinstance(first, dict) else ()))
    elif pa.types.is_struct(cells.type):
        yield from (f"{column}.{inner.name}" for inner in cells.type)
