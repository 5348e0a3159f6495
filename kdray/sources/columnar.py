"""Reads tables whose columns are stored one after the other: Parquet, and Arrow IPC as a stream, a file or Feather.

Both formats can store much in little: a value once for many rows, and buffers compressed. The sizes in the metadata are
checked first; then the batches are read one by one, still in dictionary encoding, and measured.
"""

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy

import pyarrow as pa
import pyarrow.parquet as pq

from kdray.errors import DataError
from kdray.sources.arrow_types import check_schema
from kdray.sources.data_files import DataFile, open_data
from kdray.sources.memory import Budget
from kdray.sources.tables import Table, plain_table

_ROWS_AT_ONCE = 4096
_LONGEST_FIXED_VALUE = 64
"""Bytes; decimals have at most 32."""
_MAGIC = b"ARROW1"
"""How a file in the Arrow file format begins; a stream of the same messages follows after two more bytes."""
_OLD_FEATHER = b"FEA1"


def read_parquet(file: DataFile, budget: Budget) -> Table:
    """Read a Parquet file. Raises DataError for types that are not allowed and for rows that need too much memory."""
    with _whole_file(file, budget) as data:
        with _code_of_types():
            metadata = pq.read_metadata(pa.BufferReader(data))
            schema = pq.ParquetFile(pa.BufferReader(data), metadata=metadata).schema_arrow
        check_schema(schema, file.where)
        budget.check(_claimed_size(metadata, file.where), file.where)
        binary = _binary_columns(metadata, in_lists=True)
        attempt = copy(budget)
        try:
            table = plain_table(schema, _iterate_batches(data, metadata, binary), file.where, attempt)
        except pa.ArrowNotImplementedError:
            # pyarrow 25 reads no lists of texts that have several dictionaries: in a file with several row groups, or
            # with a dictionary that grew too large. Then the texts in lists are decoded before they are measured.
            attempt = copy(budget)
            binary = _binary_columns(metadata, in_lists=False)
            table = plain_table(schema, _iterate_batches(data, metadata, binary), file.where, attempt)
        budget.take_over(attempt)
        return table


def read_arrow(file: DataFile, budget: Budget) -> Table:
    """Read an Arrow IPC file, with the errors of `read_parquet`."""
    with _whole_file(file, budget) as data:
        start = data[:8].to_pybytes()
        if start.startswith(_OLD_FEATHER):
            raise DataError(f"{file.where}: has the first version of the Feather format. Write it again as Parquet.")
        # The footer of the file format lists the messages once more; without it, nothing can be hidden between them.
        stream = data.slice(8) if start.startswith(_MAGIC) else data
        with _code_of_types(), pa.ipc.open_stream(pa.BufferReader(stream)) as reader:
            schema = reader.schema
        check_schema(schema, file.where)
        for message in pa.ipc.MessageReader.open_stream(pa.BufferReader(stream)):
            budget.check(_unpacked_size(message), file.where)
        with pa.ipc.open_stream(pa.BufferReader(stream)) as reader:
            return plain_table(reader.schema, _valid(reader), file.where, budget)


def _iterate_batches(data: pa.Buffer, metadata: pq.FileMetaData, dictionaries: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows, with these columns still in dictionary encoding."""
    parquet = pq.ParquetFile(pa.BufferReader(data), metadata=metadata, read_dictionary=dictionaries)
    yield from parquet.iter_batches(batch_size=_ROWS_AT_ONCE)


@contextmanager
def _code_of_types() -> Iterator[None]:
    """Reading a schema calls the code of registered extension types with bytes of the file; it may raise anything."""
    try:
        yield
    except (OSError, pa.ArrowException):
        raise
    except Exception as error:
        raise pa.ArrowInvalid(f"its schema: {type(error).__name__}: {error}") from None


def _valid(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches, each checked: in this format a damaged or hostile file may point outside of its buffers."""
    for batch in batches:
        batch.validate(full=True)
        yield batch


@contextmanager
def _whole_file(file: DataFile, budget: Budget) -> Iterator[pa.Buffer]:
    """The bytes of a file: memory-mapped, or in memory if the file is compressed."""
    if file.member is None and file.compression is None:
        if file.path.stat().st_size == 0:
            raise DataError(f"{file.where}: the file is empty. Give a file with rows, or remove it.")
        with pa.memory_map(str(file.path)) as mapped:
            yield mapped.read_buffer()
    else:
        with open_data(file, budget) as stream:
            yield pa.py_buffer(stream.read())


def _claimed_size(metadata: pq.FileMetaData, where: str) -> int:
    """The bytes that the rows need by the metadata: a lower bound, because a value in a dictionary counts once.

    Raises DataError for a column with long values of a fixed length, which is not read in dictionary encoding.
    """
    size = metadata.num_rows * metadata.num_columns
    for number in range(metadata.num_columns):
        column = metadata.schema.column(number)
        if column.physical_type == "FIXED_LEN_BYTE_ARRAY" and column.length > _LONGEST_FIXED_VALUE:
            raise DataError(
                f"{where}, column {column.path!r}: has values of {column.length} bytes. Write it as binary."
            )
    # Not the sizes of single columns: asked for those of a damaged file, pyarrow ends the process (seen in 25.0).
    return size + sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))


def _binary_columns(metadata: pq.FileMetaData, in_lists: bool) -> list[str]:
    """The paths of the columns with texts or bytes, which can be read without decoding their dictionaries.

    Those with lists of texts are among them only if `in_lists`.
    """
    columns = [metadata.schema.column(index) for index in range(metadata.num_columns)]
    if not in_lists:
        columns = [column for column in columns if column.max_repetition_level == 0]
    is_binary = [column.physical_type == "BYTE_ARRAY" and column.logical_type.type != "DECIMAL" for column in columns]
    return [column.path for column, binary in zip(columns, is_binary, strict=True) if binary]


def _unpacked_size(message: pa.ipc.Message) -> int:
    """The bytes of a message's buffers after decompression.

    Arrow allocates as many bytes as stand before each compressed buffer, and shows them nowhere. The layout of a
    message: https://github.com/apache/arrow/blob/main/format/Message.fbs, read as FlatBuffers tables.
    """
    if message.body is None:
        return 0
    metadata, body = message.metadata.to_pybytes(), message.body
    try:
        root = _FlatTable.root(metadata)
        batch = root.table(2)
        if batch is not None and message.type == "dictionary":
            batch = batch.table(1)
        if batch is None or batch.position_of(3) is None:  # not compressed
            return int(body.size)
        return sum(_claimed_length(body, offset, length) for offset, length in batch.pairs(2))
    except (struct.error, IndexError):
        raise pa.ArrowInvalid("a message is damaged") from None


def _claimed_length(body: pa.Buffer, offset: int, length: int) -> int:
    """The number of bytes of one buffer of a compressed batch after decompression."""
    if length < 8:
        return length
    (claimed,) = struct.unpack("<q", body.slice(offset, 8).to_pybytes())
    return length if claimed < 0 else int(claimed)  # -1: this buffer is stored as it is


class _FlatTable:
    """A table of a FlatBuffers message, https://flatbuffers.dev/internals: fields are found by their number."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data, self._position = data, position

    @classmethod
    def root(cls, data: bytes) -> "_FlatTable":
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def position_of(self, field: int) -> int | None:
        """Where the value of a field begins; None for a field that is not set."""
        fields = self._position - struct.unpack_from("<i", self._data, self._position)[0]
        (size,) = struct.unpack_from("<H", self._data, fields)
        if 4 + 2 * field >= size:
            return None
        (offset,) = struct.unpack_from("<H", self._data, fields + 4 + 2 * field)
        return self._position + offset if offset else None

    def table(self, field: int) -> "_FlatTable | None":
        """The table in a field."""
        position = self.position_of(field)
        return None if position is None else _FlatTable(self._data, self._target(position))

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """The structs of two 64-bit numbers in a field that is a vector of them."""
        position = self.position_of(field)
        if position is None:
            return []
        start = self._target(position)
        (count,) = struct.unpack_from("<I", self._data, start)
        numbers = struct.unpack_from(f"<{2 * count}q", self._data, start + 4)
        return list(zip(numbers[::2], numbers[1::2], strict=True))

    def _target(self, position: int) -> int:
        return position + int(struct.unpack_from("<I", self._data, position)[0])
