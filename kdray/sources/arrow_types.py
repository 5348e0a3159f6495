"""Which Arrow types a table may have, and how large its cells are when they are decoded.

An Arrow extension type is a name in a file that a library of this process may connect with code. Ray connects
`ray.data.arrow_pickled_object` with code that unpickles each cell when it is read, and a pickle can run any program. So
every Arrow schema from a file is checked here before a cell is touched.

This module imports nothing that loads raw data, so that a worker starts quickly.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdray.errors import DataError

HARMLESS_EXTENSIONS = frozenset(
    (
        *(f"arrow.{name}" for name in ("bool8", "fixed_shape_tensor", "json", "opaque", "uuid")),
        *(f"datasets.features.features.Array{number}DExtensionType" for number in (2, 3, 4, 5)),
    )
)
"""The extension types whose code is known: those of Arrow itself, and the arrays of Hugging Face `datasets`."""

_EXTENSION_NAME = b"ARROW:extension:name"
_OFFSET_BYTES = 8
"""Charged for each cell besides its content, so that very many empty cells are counted, too."""


def check_schema(schema: pa.Schema, where: str) -> None:
    """Raise DataError for an extension type that is not known to be harmless, and for types that cannot be measured.

    Types inside other types are checked, too: fields of structs, items of lists and maps, values of dictionaries.
    """
    try:
        for field in schema:
            _check_field(field, field.name, where)
    except RecursionError:
        raise DataError(f"{where}: a column has too many levels of nested types. Write it with fewer levels.") from None


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with the storage of an extension type instead of the type, and without dictionary encoding.

    The schema must have been checked, and the decoded size.
    """
    if isinstance(column.type, pa.BaseExtensionType):
        storage = column.type.storage_type
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], storage)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column


def decoded_size(array: pa.Array) -> int:
    """The bytes of an array's cells without dictionary encoding, views or other ways of storing a value once."""
    return len(array) * _OFFSET_BYTES + _content_size(array)


def _check_field(field: pa.Field, path: str, where: str) -> None:
    # Where no library has registered the type, pyarrow gives the storage, and its name is metadata of the field. The
    # file is then refused as well: whether it can be read must not depend on what this process has imported.
    metadata = field.metadata or {}
    names = [metadata[_EXTENSION_NAME].decode(errors="replace")] if _EXTENSION_NAME in metadata else []
    kind = field.type
    while isinstance(kind, pa.BaseExtensionType):
        names.append(kind.extension_name)
        kind = kind.storage_type
    for name in names:
        if name not in HARMLESS_EXTENSIONS:
            raise DataError(
                f"{where}, column {path!r}: has the Arrow extension type {name!r}, whose cells may run a program when "
                f"they are read. Do not use a file from a stranger; write your own file with plain text and numbers."
            )
    if _has_unknown_size(kind):
        raise DataError(f"{where}, column {path!r}: has the Arrow type {kind}. Write it as a list, a text or a number.")
    for child in _child_fields(kind):
        _check_field(child, f"{path}.{child.name}", where)


def _child_fields(kind: pa.DataType) -> Iterator[pa.Field]:
    # A dictionary has no child fields for pyarrow: its values are asked for by name.
    if pa.types.is_dictionary(kind):
        yield pa.field("values", kind.value_type)
    else:
        yield from (kind.field(number) for number in range(kind.num_fields))


def _has_unknown_size(kind: pa.DataType) -> bool:
    """Whether cells of the type may share their content in ways that `decoded_size` does not measure."""
    tests = (pa.types.is_run_end_encoded, pa.types.is_union, pa.types.is_list_view, pa.types.is_large_list_view)
    return any(test(kind) for test in tests)


def _content_size(array: pa.Array) -> int:
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _content_size(array.storage)
    if pa.types.is_dictionary(kind):
        return _dictionary_size(array)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return _view_size(array)
    if pa.types.is_struct(kind):
        return sum(decoded_size(child) for child in array.flatten())
    if pa.types.is_nested(kind):
        return _list_size(array)
    return int(array.nbytes)


def _dictionary_size(array: pa.DictionaryArray) -> int:
    values = array.dictionary
    if not _is_binary(values.type):
        # An upper bound: Arrow measures only values that are texts, and values of other types are rare and small.
        is_fixed = values.type.num_buffers == 2 and not pa.types.is_nested(values.type)
        return len(array) * (values.nbytes // max(1, len(values)) + 1 if is_fixed else decoded_size(values))
    lengths = pc.binary_length(values).cast(pa.int64())
    return int(pc.sum(lengths.take(array.indices)).as_py() or 0)


def _list_size(array: pa.Array) -> int:
    if pa.types.is_map(array.type):
        return decoded_size(array.keys) + decoded_size(array.items)
    return decoded_size(array.flatten())


def _view_size(array: pa.Array) -> int:
    # Arrow measures no views. A view is 16 bytes, and the first 4 of them are the length of its content.
    views = np.frombuffer(array.buffers()[1], np.int32) if array.buffers()[1] else np.zeros(0, np.int32)
    return int(views[array.offset * 4 : (array.offset + len(array)) * 4 : 4].astype(np.int64).sum())


def _is_binary(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)
