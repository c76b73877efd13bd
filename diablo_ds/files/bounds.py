"""How much a file may make of itself: limits that are checked while it is read.

A file of another person's may be small on disk and endless in memory: compressed zeros, a text of a
dictionary that a million rows repeat, a list of empty lists. Whoever reads one counts what comes
out of it, and refuses it before memory is gone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from diablo_ds.errors import UserError

FREE_BYTES = 1 << 27
"""What any file may grow to; real data above that never shrink to a 200th of their size."""
MAX_GROWTH = 200
"""Bytes in memory for each byte on disk, above `FREE_BYTES`."""
MAX_VALUES = 5_000_000
"""Values of one JSON text: each takes up to 100 bytes of memory, from 2 bytes of text on."""
MAX_HEADER_BYTES = 100_000_000
"""Header of a safetensors file; the limit of the library itself."""
MAX_LINE_BYTES = 1 << 26
"""Line of a record, such as a file of metrics or predictions."""


class Growth:
    """Counts what was read from a file, and refuses one that grows out of proportion.

    Args:
        path: the file, for the error.
        num_bytes: its size on disk.
    """

    def __init__(self, path: Path, num_bytes: int) -> None:
        self._path = path
        self._most = FREE_BYTES + MAX_GROWTH * num_bytes
        self._num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Count bytes that came out of the file.

        Raises:
            UserError: if they are too many for its size.
        """
        self._num_bytes += num_bytes
        if self._num_bytes > self._most:
            raise UserError(
                f"a source file must grow to at most {MAX_GROWTH} times its size, or "
                f"{FREE_BYTES >> 20} MiB, when it is read; got more in {self._path}; if you trust "
                "it, decompress it or save it again without repeated values"
            )


def read_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file of records; of one that is too long its beginning, then no more."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
        if len(line) > MAX_LINE_BYTES:
            return


def read_start(path: Path, max_bytes: int) -> bytes:
    """Return the beginning of a file, whoever wrote it; waits for no pipe and follows no link.

    Raises:
        UserError: if it is no regular file.
        OSError: if it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"a record must be a regular file; got {path}; remove it")
        return os.read(descriptor, max_bytes)
    finally:
        os.close(descriptor)


def check_values(text: str) -> str:
    """Return why a JSON text has too many values to be read at once; "" where it has not."""
    if len(text) <= MAX_VALUES or text.count(",") + text.count("[") + text.count("{") < MAX_VALUES:
        return ""
    return f"at most {MAX_VALUES:,} values may be in one text"


def size_of(value: object) -> int:
    """Return the approximate number of bytes that a value of JSON or Arrow takes."""
    if isinstance(value, str | bytes):
        return 64 + len(value)
    if isinstance(value, dict):
        return 64 + sum(map(size_of, value.values()))
    if isinstance(value, list | tuple):
        return 64 + sum(map(size_of, value))
    return 16
