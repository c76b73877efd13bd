"""The file of predictions: a row for each answer, there as soon as it is known."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from diablo_ds.errors import UserError
from diablo_ds.evaluation.items import Key
from diablo_ds.files import owned
from diablo_ds.files.atomic import write_text
from diablo_ds.files.bounds import MAX_LINE_BYTES, read_lines

_SYNC_S = 1.0
"""Seconds between two syncs: what a crash of the machine, not of the process, can lose."""
Row = dict[str, Any]


class Predictions:
    """The rows of a file by their keys, to which rows are appended; of a key the last one counts.

    A last line that was cut off by a crash is removed.

    Args:
        path: of the file, which is made where there is none.

    Raises:
        UserError: if a line is not a row.
        OSError: if it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[Key, Row] = {}
        kept = self._read()
        self._file: IO[bytes] = owned.open_owned(path, "ab")
        if self._file.tell() > kept:
            self._file.truncate(kept)
        self._synced = time.monotonic()

    def _read(self) -> int:
        """Read all complete rows, and return how many bytes they take."""
        kept = 0
        if self.path.exists():
            for key, row, num_bytes in complete_rows(self.path):
                self.rows[key] = row
                kept += num_bytes
        return kept

    def add(self, row: Row) -> None:
        """Append a row; it is with the operating system when this returns."""
        self.rows[key_of(row)] = row
        self._file.write(_line(row).encode())
        self._file.flush()
        if time.monotonic() - self._synced > _SYNC_S:
            self.sync()

    def sync(self) -> None:
        """Flush all rows to disk."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Flush all rows to disk and close the file."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def sort(self, place: Callable[[Key], Any]) -> None:
        """Close the file, and write it anew with one row a key, in order."""
        self.close()
        self.rows = {key: self.rows[key] for key in sorted(self.rows, key=place)}
        write_text(self.path, "".join(map(_line, self.rows.values())))


def complete_rows(path: Path) -> Iterator[tuple[Key, Row, int]]:
    """Yield the key of each row of a file, the row, and the bytes of its line.

    A last line that is cut off is left out.

    Raises:
        UserError: if another line is not a row.
    """
    with path.open("rb") as file:
        for number, line in enumerate(read_lines(file), start=1):
            is_complete = line.endswith(b"\n")
            try:
                row = json.loads(line)
                key = key_of(row)
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                if not is_complete and len(line) <= MAX_LINE_BYTES:
                    return
                raise UserError(
                    f"predictions must be rows of this program; got {path}, line {number}; repair "
                    "or remove that line, or choose another output folder"
                ) from None
            if not is_complete:  # its end is there by chance, but the next row would follow it
                return
            yield key, row, len(line)


def key_of(row: Mapping[str, Any]) -> Key:
    """Return the key of a row.

    Raises:
        KeyError: if a part is missing.
        TypeError: if it is no row.
    """
    key = Key(row["model"], row["task"], row["kind"], row["id"], int(row["sample"]))
    if not all(isinstance(name, str) for name in key[:-1]):
        raise TypeError("model, task, kind and id must be text")
    return key


def _line(row: Row) -> str:
    # Escaped: characters that cannot be encoded, or end a line for some readers, stay readable.
    return json.dumps(row, allow_nan=False) + "\n"
