"""Arrow files of other people: what they would take in memory, and whether offsets can be followed.

pyarrow follows offsets and indices as they stand in a file, out of the memory that belongs to them
too, unless they were validated. A compressed buffer says how large it becomes; pyarrow allocates
that much. The layout is that of Arrow's columnar format: messages with a flatbuffer each.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from diablo_ds.errors import UserError
from diablo_ds.files.bounds import FREE_BYTES, MAX_GROWTH

_MAGIC = b"ARROW1"
_STREAM_OFFSET = 8
"""Where the stream in an Arrow file begins, behind the magic and its padding."""
_DICTIONARY, _RECORD_BATCH = 2, 3
"""Kinds of a message's header."""


def arrow_damages() -> tuple[type[Exception], ...]:
    """Return what pyarrow raises for a damaged file, in which names need not be UTF-8."""
    import pyarrow as pa

    return (pa.ArrowException, OSError, UnicodeDecodeError)


def open_stream(file: Any) -> Any:
    """Open an Arrow stream, or the one that an Arrow file holds.

    Raises:
        ArrowInvalid: if there is none.
    """
    import pyarrow as pa

    _rewind(file)
    return pa.ipc.open_stream(file)


def check_messages(file: Any, path: Path) -> None:
    """Raise UserError unless the record batches of a file fit into memory when decompressed.

    Args:
        file: memory-mapped, so that only headers are read.
        path: its path, for the error.

    Raises:
        ArrowInvalid: if it is no Arrow stream or file.
    """
    import pyarrow as pa

    _rewind(file)
    messages = pa.ipc.MessageReader.open_stream(file)
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return
        body = message.body
        try:
            grown = _decompressed_bytes(message.metadata.to_pybytes(), body)
        except (struct.error, IndexError, OverflowError) as error:
            raise pa.ArrowInvalid(f"a message has a damaged header: {error}") from None
        if grown > FREE_BYTES + MAX_GROWTH * (body.size if body else 0):
            raise UserError(
                f"a record batch must grow to at most {MAX_GROWTH} times its size, or "
                f"{FREE_BYTES >> 20} MiB, when it is decompressed; got one of {grown:,} bytes in "
                f"{path}"
            )


def check_batch(batch: Any) -> None:
    """Raise ArrowInvalid unless each offset and index of a record batch or table can be followed.

    Text that is not UTF-8 is left to those who read it, where no other column can hide behind it.
    """
    import pyarrow as pa

    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            if not (is_text and "UTF8" in str(error)):
                raise


def _rewind(file: Any) -> None:
    file.seek(0)
    file.seek(_STREAM_OFFSET if file.read(len(_MAGIC)) == _MAGIC else 0)


def _decompressed_bytes(metadata: bytes, body: Any) -> int:
    """Return the bytes that a message's buffers take when they are decompressed."""
    message = _table(metadata, 0)
    kind = _field(metadata, message, 1)
    header = _table(metadata, _field(metadata, message, 2))
    if metadata[kind] == _DICTIONARY:
        header = _table(metadata, _field(metadata, header, 1))
    elif metadata[kind] != _RECORD_BATCH:
        return 0
    buffers, compression = (_field(metadata, header, number) for number in (2, 3))
    if not compression or not buffers or body is None:
        return 0
    start = buffers + struct.unpack_from("<I", metadata, buffers)[0]
    total, view = 0, memoryview(body)
    for number in range(struct.unpack_from("<I", metadata, start)[0]):
        offset, length = struct.unpack_from("<qq", metadata, start + 4 + 16 * number)
        if length:
            size = struct.unpack_from("<q", view, offset)[0]
            total += length if size == -1 else size  # -1: this one is not compressed
            if size < -1 or offset < 0:
                raise IndexError("a buffer has a negative size")
    return total


def _table(data: bytes, place: int) -> int:
    """Return where the table begins that an offset at ``place`` leads to."""
    return place + int(struct.unpack_from("<I", data, place)[0])


def _field(data: bytes, table: int, number: int) -> int:
    """Return where a field of a table is; 0 where it is not there."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, vtable)[0]
    if 4 + 2 * number >= size:
        return 0
    offset = int(struct.unpack_from("<H", data, vtable + 4 + 2 * number)[0])
    return table + offset if offset else 0
