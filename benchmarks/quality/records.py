"""The file of records: a JSON line for each training, on disk before the next one starts."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from benchmarks.json_lines import write_line
from benchmarks.quality.spec import Spec
from diablo_ds.errors import UserError

Record = Mapping[str, Any]
FILE = "records.jsonl"


class Records:
    """The records of a folder, to which one process at a time appends.

    Args:
        folder: holds `FILE`, or will.

    Raises:
        UserError: if a line is not a record, or another process has the file.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        self._file: IO[bytes] = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(
                f"one process at a time must write to a folder; got {folder}, to which another "
                "one is writing; wait for it, or give another --output"
            ) from None
        self.all, kept = _read(self.path)
        self.num_dropped_bytes = self.path.stat().st_size - kept
        """Of a last line that was damaged."""
        if self.num_dropped_bytes:
            self._file.truncate(kept)

    def __enter__(self) -> Records:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file, which lets the next process have it."""
        self._file.close()

    def add(self, record: Record) -> None:
        """Append a record; it is on disk when this returns."""
        write_line(self._file, record, allow_nan=False)
        self.all.append(record)


def read_records(folder: Path) -> list[Record]:
    """Return a folder's records without changing anything; a damaged last line is ignored.

    Raises:
        UserError: if there is no file of records, or a line is not one.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"the folder must hold {FILE}; got {folder}")
    return _read(path)[0]


def _read(path: Path) -> tuple[list[Record], int]:
    """Return the records and how many bytes their lines take; a damaged last line is none."""
    found: list[Record] = []
    kept = 0
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("it was cut off")
            found.append(_parse(line))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise UserError(
                f"each line must be a record of this study; got {path}, line {number}: {error}; "
                "repair or remove that line"
            ) from None
        kept += len(line)
    return found, kept


def _parse(line: bytes) -> Record:
    record = json.loads(line)
    for name in ("device", "status"):
        if not isinstance(record[name], str):
            raise ValueError(f"{name} must be a text")
    # Fields that are newer than the record have their defaults.
    return {**record, "key": Spec.from_json(record["spec"]).key()}
