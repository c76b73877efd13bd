"""The pages of a parquet file, looked at before they are decoded: what a row can take in memory.

A page says how large it becomes, and two bytes repeat a text of a dictionary: 700 bytes of a file
become gigabytes. A page's header is a struct of Thrift's compact protocol, in the fields of
`parquet.thrift`: 2 the decompressed size, 3 the size in the file, 5 and 8 the headers of data pages
of version 1 and 2, 7 of a dictionary.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from diablo_ds.errors import UserError

MAX_PAGE_BYTES = 1 << 27
"""Decompressed page of a column; writers make pages of 1 MiB, or of some 1,000 rows."""
MAX_ROW_BYTES = 1 << 32
"""What the values of one row of a column, all as long as its dictionary, may take."""
_BATCH_BYTES = 1 << 26
_MAX_HEADER_BYTES = 1 << 24
_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _MAP, _STRUCT = (
    (1, 2),
    3,
    (4, 5, 6),
    7,
    8,
    (9, 10),
    11,
    12,
)
_MAX_DEPTH = 16


def rows_at_once(path: Path, metadata: Any, most: int) -> int:
    """Return how many rows of a parquet file can be decoded at once in bounded memory.

    Args:
        path: the file.
        metadata: its metadata, as pyarrow has it.
        most: rows to decode at once where nothing speaks against it.

    Raises:
        UserError: if a page or a row is too large.
        ArrowInvalid: if a page's header is damaged.
    """
    row_bytes = 0
    with path.open("rb") as file:
        for group in range(metadata.num_row_groups):
            described = metadata.row_group(group)
            columns = (described.column(number) for number in range(described.num_columns))
            sizes = [_row_bytes(file, column, described.num_rows, path) for column in columns]
            row_bytes = max(row_bytes, sum(sizes))
    return max(1, min(most, _BATCH_BYTES // max(1, row_bytes)))


def _row_bytes(file: IO[bytes], column: Any, num_rows: int, path: Path) -> int:
    """Return what a row of a column chunk can take, as far as a dictionary repeats texts."""
    dictionary_bytes = 0
    for size, is_dictionary in _pages(file, column):
        if size > MAX_PAGE_BYTES:
            raise UserError(
                f"a page of a parquet file must have at most {MAX_PAGE_BYTES:,} bytes when it is "
                f"decompressed; got {size:,} in column {column.path_in_schema!r:.80} of {path}; "
                "write it with smaller pages"
            )
        if is_dictionary:
            dictionary_bytes = max(dictionary_bytes, size)
    if column.physical_type not in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"):
        dictionary_bytes = min(dictionary_bytes, 16)
    row_bytes: int = dictionary_bytes * max(1, column.num_values // max(1, num_rows))
    if row_bytes > MAX_ROW_BYTES:
        raise UserError(
            f"a row of a parquet file must have at most {MAX_ROW_BYTES:,} bytes; got up to "
            f"{row_bytes:,} in column {column.path_in_schema!r:.80} of {path}"
        )
    return row_bytes


def _pages(file: IO[bytes], column: Any) -> Iterator[tuple[int, bool]]:
    """Yield the decompressed size of each page of a column chunk, and whether it is a dictionary.

    Raises:
        ArrowInvalid: if a header is damaged.
    """
    import pyarrow as pa

    starts = [column.data_page_offset]
    if column.has_dictionary_page and column.dictionary_page_offset:
        starts.append(column.dictionary_page_offset)
    place = min(starts)
    end = place + column.total_compressed_size
    while 0 <= place < end:
        header = _Header(file, place)
        try:
            fields = header.struct()
        except (IndexError, ValueError) as error:
            raise pa.ArrowInvalid(f"a page has a damaged header: {error}") from None
        size, stored = (fields.get(number) for number in (2, 3))
        if not (isinstance(size, int) and isinstance(stored, int) and min(size, stored) >= 0):
            raise pa.ArrowInvalid("a page must have a size")
        yield size, 7 in fields
        place += header.place + stored


class _Header:
    """Reads a struct of Thrift's compact protocol from a place in a file."""

    def __init__(self, file: IO[bytes], place: int) -> None:
        file.seek(place)
        self._file = file
        self._data = file.read(256)
        self.place = 0
        """Bytes that were read."""

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Return the fields of a struct; of structs inside it, only that they are there.

        Raises:
            IndexError: if the file ends.
            ValueError: if it is no struct.
        """
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            delta, kind = divmod(head, 16)
            number = number + delta if delta else self._signed()
            fields[number] = self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        if kind in _BOOLEANS:
            return None
        if kind in _INTEGERS:
            return self._signed()
        if kind in (_BYTE, _DOUBLE, _BINARY):
            self._skip({_BYTE: 1, _DOUBLE: 8}.get(kind) or self._unsigned())
        elif kind in _LISTS:
            count, inner = divmod(self._byte(), 16)
            for _ in range(self._unsigned() if count == 15 else count):
                self._element(inner, depth)
        elif kind == _MAP:
            count = self._unsigned()
            kinds = divmod(self._byte(), 16) if count else (0, 0)
            for _ in range(count):
                for inner in kinds:
                    self._element(inner, depth)
        elif kind == _STRUCT:
            self.struct(depth + 1)
        else:
            raise ValueError(f"it has a field of kind {kind}")
        return None

    def _element(self, kind: int, depth: int) -> None:
        if kind in _BOOLEANS:
            self._skip(1)
        else:
            self._value(kind, depth + 1)

    def _byte(self) -> int:
        self._skip(1)
        return self._data[self.place - 1]

    def _skip(self, count: int) -> None:
        self.place += count
        while self.place > len(self._data):
            more = self._file.read(len(self._data))
            if not more or len(self._data) > _MAX_HEADER_BYTES:
                raise IndexError("it has no end")
            self._data += more

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number has no end")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
