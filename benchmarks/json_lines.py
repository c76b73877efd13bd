"""Files of JSON lines, each of which is on disk before the next measurement begins."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record to a file; makes it, and its folder, where they are not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        write_line(file, record)


def write_line(file: IO[bytes], record: Mapping[str, Any], *, allow_nan: bool = True) -> None:
    """Write a record to an open file; it is on disk when this returns.

    Raises:
        ValueError: if a number is not finite, unless that is allowed.
    """
    file.write(json.dumps(record, allow_nan=allow_nan).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, without a last one that is half written."""
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
