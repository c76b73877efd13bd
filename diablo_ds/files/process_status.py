"""What the kernel tells of any process; only the standard library is used here."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class ProcessStatus(NamedTuple):
    """What `/proc/PID/stat` says of a process (proc(5))."""

    state: str
    """One letter: R, S, D, T or t where it is stopped, Z where it only waits to be asked after."""
    parent: int
    started: int
    """When it started, in clock ticks since the machine did."""


def process_status(pid: int) -> ProcessStatus:
    """Return the status of a process.

    Raises:
        OSError: if there is no such process, or no `/proc`.
    """
    text = Path(f"/proc/{pid}/stat").read_bytes()
    fields = text.rpartition(b")")[2].split()  # the name before it may hold anything
    try:
        return ProcessStatus(fields[0].decode(), int(fields[1]), int(fields[19]))
    except (IndexError, ValueError):
        raise OSError(f"/proc/{pid}/stat must have a status; got {text!r:.60}") from None
