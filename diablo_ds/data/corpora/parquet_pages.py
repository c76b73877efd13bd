"""The pages of a parquet file, looked at before they are decoded: what a row can take in memory.

A page says how large it becomes, and two bytes repeat a text of a dictionary: 700 bytes of a file
become gigabytes. The footer is read here and not asked of pyarrow, whose process ends by SIGABRT
when it is asked for a column of which a damaged footer counts more levels than there are. Fields'
numbers are those of `parquet.thrift`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from diablo_ds.data.corpora import thrift
from diablo_ds.errors import UserError

_T = TypeVar("_T")

MAX_PAGE_BYTES = 1 << 27
"""Decompressed page of a column; writers make pages of 1 MiB, or of some 1,000 rows."""
MAX_ROW_BYTES = 1 << 32
"""What the values of one row of a column, all as long as its dictionary, may take."""
_BATCH_BYTES = 1 << 26
_TEXT_TYPES = (6, 7)
"""BYTE_ARRAY and FIXED_LEN_BYTE_ARRAY."""
_MAGIC = b"PAR1"


def rows_at_once(path: Path, most: int) -> int:
    """Return how many rows of a parquet file can be decoded at once in bounded memory.

    Args:
        path: the file.
        most: rows to decode at once where nothing speaks against it.

    Raises:
        UserError: if a page or a row is too large.
        ArrowInvalid: if the footer or a page's header is damaged.
    """
    import pyarrow as pa

    row_bytes = 0
    with path.open("rb") as file:
        try:
            for columns, num_rows in _row_groups(file):
                sizes = [_row_bytes(file, column, num_rows, path) for column in columns]
                row_bytes = max(row_bytes, sum(sizes))
        except (IndexError, ValueError, struct.error) as error:
            raise pa.ArrowInvalid(f"a damaged footer or header of a page: {error}") from None
    return max(1, min(most, _BATCH_BYTES // max(1, row_bytes)))


class _Column(NamedTuple):
    """A column's chunk in a row group."""

    name: str
    is_text: bool
    num_values: int
    num_bytes: int
    """In the file."""
    start: int
    """Offset of its first page."""


def _row_groups(file: IO[bytes]) -> Iterator[tuple[list[_Column], int]]:
    """Yield the columns of each row group, and its number of rows.

    Raises:
        IndexError: if the footer ends too early.
        ValueError: if it is damaged.
    """
    file.seek(-8, os.SEEK_END)
    length, magic = struct.unpack("<I4s", file.read(8))
    if magic != _MAGIC or length + 8 > file.tell():
        raise ValueError("no footer")
    footer = thrift.read_struct(file, file.tell() - 8 - length).fields
    for group in _field(footer, 4, list):
        columns = [_column(_field(chunk, 3, dict)) for chunk in _field(group, 1, list)]
        yield columns, _field(group, 3, int)


def _column(described: Mapping[int, Any]) -> _Column:
    names = _field(described, 3, list)
    if not all(isinstance(name, bytes) for name in names):
        raise ValueError("names of a column must be texts")
    starts = [_field(described, 9, int)]
    if described.get(11):
        starts.append(_field(described, 11, int))  # of the dictionary
    is_text = _field(described, 1, int) in _TEXT_TYPES
    num_values, num_bytes = (_field(described, number, int) for number in (5, 7))
    name = b".".join(names).decode(errors="replace")
    return _Column(name, is_text, num_values, num_bytes, min(starts))


def _field(fields: Any, number: int, kind: type[_T]) -> _T:
    value = fields.get(number) if isinstance(fields, dict) else None
    if not isinstance(value, kind):
        raise ValueError(f"field {number} must be there, of another kind")
    return value


def _row_bytes(file: IO[bytes], column: _Column, num_rows: int, path: Path) -> int:
    """Return what a row of a column chunk can take, as far as a dictionary repeats texts."""
    dictionary_bytes = 0
    for size, is_dictionary in _pages(file, column):
        if size > MAX_PAGE_BYTES:
            raise UserError(
                f"a page of a parquet file must have at most {MAX_PAGE_BYTES:,} bytes when it is "
                f"decompressed; got {size:,} in column {column.name!r:.80} of {path}; "
                "write it with smaller pages"
            )
        if is_dictionary:
            dictionary_bytes = max(dictionary_bytes, size)
    if not column.is_text:
        dictionary_bytes = min(dictionary_bytes, 16)
    row_bytes = dictionary_bytes * max(1, column.num_values // max(1, num_rows))
    if row_bytes > MAX_ROW_BYTES:
        raise UserError(
            f"a row of a parquet file must have at most {MAX_ROW_BYTES:,} bytes; got up to "
            f"{row_bytes:,} in column {column.name!r:.80} of {path}"
        )
    return row_bytes


def _pages(file: IO[bytes], column: _Column) -> Iterator[tuple[int, bool]]:
    """Yield the decompressed size of each page of a column chunk, and whether it is a dictionary.

    Raises:
        IndexError: if a header ends too early.
        ValueError: if it is damaged.
    """
    place = column.start
    end = place + column.num_bytes
    while 0 <= place < end:
        fields, length = thrift.read_struct(file, place)
        size, stored = (_field(fields, number, int) for number in (2, 3))
        if min(size, stored) < 0:
            raise ValueError("a page must have a size")
        yield size, 7 in fields
        place += length + stored
