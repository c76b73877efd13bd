"""How ranks ended: one file per rank in the log folder, and which of them failed first.

Only the standard library is used here: a guard lives beside every rank and has to stay small.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diablo_ds.files import owned, strict_json
from diablo_ds.files.bounds import read_start
from diablo_ds.files.layout import RANK_RECORDS
from diablo_ds.ranks.memory_kills import KILLER, log_of_kill

FAILED_FILE = "failed"
"""Made by the first rank that fails; tells the others to stop."""
STOP_FILE = "stop"
"""Made by the launcher to end a run at the next micro batch."""
WARNING_VARIABLE = "DIABLO_SLURM_WARNING_S"
"""Environment variable with the seconds between SLURM's warning and its time limit."""
STOPPED = "stopped by a signal (SIGSTOP)"
TAIL_LINES = 25
RECORD_BYTES = 2048
NOTE_S = 10.0
"""Seconds between two notes of what a rank does: all ranks' at the same times of their clocks."""
LAST_TIME = 1e11
"""Seconds since 1970, in the year 5138: later ones are none, and no calendar has all of them."""
_LESS_MEMORY = (
    "A smaller --micro-batch or --max-length, --recompute, fewer ranks on a host, and on GPUs no "
    "offload to the CPU take less of the host's memory."
)


@dataclass(frozen=True)
class RankRecord:
    """How a rank ended, or that it has not."""

    rank: int
    host: str
    pid: int
    world_size: int
    started: float
    """Seconds since 1970, by the host's clock."""
    ended: float = 0.0
    exit_code: int | None = None
    """None while it runs; 128 and the signal's number where a signal ended it."""
    cause: str = ""
    """What ended it, for people."""
    phase: str = ""
    """What it did last."""
    by_request: bool = False
    """Whether something else had ended before and this rank was told to stop."""
    noted: float = 0.0
    """When this was last written while it runs; its guard does so every `NOTE_S`."""
    phase_s: float = 0.0
    """How long it had been in its phase by then."""

    @property
    def has_failed(self) -> bool:
        """Return whether it ended badly of its own."""
        return bool(self.exit_code) and not self.by_request


def record_file(folder: Path, rank: int) -> Path:
    """Return where a rank's record is."""
    return folder / f"rank-{rank:05d}.json"


def log_file(folder: Path, rank: int) -> Path:
    """Return where a rank's output is."""
    return folder / f"rank-{rank:05d}.log"


def write_record(folder: Path, record: RankRecord) -> None:
    """Write a record in place: its end needs no more room than its start, so none on a full disk.

    Best effort: an error must not keep a guard from its work.
    """
    text = json.dumps(asdict(record), indent=2)
    with contextlib.suppress(OSError):
        path = record_file(folder, record.rank)
        descriptor = owned.open_own_file(path, os.O_CREAT | os.O_WRONLY)
        os.write(descriptor, f"{text:{RECORD_BYTES - 1}}\n".encode())
        os.fsync(descriptor)
        os.close(descriptor)


def announce_failure(folder: Path, rank: int) -> None:
    """Tell all other ranks that one failed, unless another one did so first."""
    with contextlib.suppress(OSError):
        owned.write_new_file(folder / FAILED_FILE, f"{rank}\n".encode())


def read_records(folder: Path, *, of_anyone: bool = False) -> list[RankRecord]:
    """Return the records in a log folder, by rank.

    One that is being written is skipped, and so is one that another user put there.

    Args:
        folder: the log folder.
        of_anyone: whether those of other users count, where they are only shown.
    """
    records = []
    for path in sorted(folder.glob(RANK_RECORDS)):
        with contextlib.suppress(OSError, ValueError, TypeError):
            data = read_start(path, RECORD_BYTES) if of_anyone else owned.read_own_file(path)
            records.append(_parse(strict_json.loads(data)))
    return records


def _parse(values: Any) -> RankRecord:
    """Return a record; ValueError or TypeError where a value is of another type."""
    record = RankRecord(**values)
    for name, example in asdict(_EXAMPLE).items():
        value = getattr(record, name)
        is_number = isinstance(example, float) and type(value) in (int, float)
        is_open = name == "exit_code" and value is None
        if not (type(value) is type(example) or is_number or is_open):
            raise TypeError(f"{name} must be {type(example).__name__}")
        if is_number and not 0 <= value <= LAST_TIME:
            raise ValueError(f"{name} must be a time")
    return record


_EXAMPLE = RankRecord(0, "", 0, 0, 0.0, exit_code=0)


def log_folders(logs: Path) -> list[Path]:
    """Return the log folders of a run's starts, by the times of their last records."""
    last: dict[Path, float] = {}
    for path in logs.rglob(RANK_RECORDS):
        with contextlib.suppress(OSError):  # it is gone meanwhile
            last[path.parent] = max(last.get(path.parent, 0.0), path.stat().st_mtime)
    return sorted(last, key=lambda folder: last[folder])


def last_log_folder(logs: Path) -> Path | None:
    """Return the log folder of the last start among those in a folder; None where there is none."""
    return next(reversed(log_folders(logs)), None)


def first_failure(records: Sequence[RankRecord]) -> RankRecord | None:
    """Return the rank that failed first; the others are most likely its victims.

    A rank without an end vanished with its guard, as when a host goes down: nothing tells when,
    but it did not fall to the others, who were stopped in order.
    """
    vanished = [record for record in records if record.exit_code is None]
    failed = sorted((r for r in records if r.has_failed), key=lambda record: record.ended)
    stopped = [record for record in failed if STOPPED in record.cause]
    return next(iter([*stopped, *vanished, *failed]), None)


def describe_failure(folder: Path) -> str:
    """Return the first failing rank's error as text: host, rank, cause, last lines of its log."""
    records = read_records(folder)
    failure = first_failure(records)
    if failure is None:
        return f"no rank left a record of its end in {folder}"
    cause = failure.cause or _cause_of_vanishing(failure)
    during = f", in {failure.phase}" if failure.phase else ""
    lines = [
        f"rank {failure.rank} on {failure.host} failed first{during}: {cause}",
        f"Its last lines, from {log_file(folder, failure.rank)}:",
        *(f"  | {line}" for line in last_lines(log_file(folder, failure.rank)) or ["(none)"]),
    ]
    if KILLER in cause:
        lines.append(_LESS_MEMORY)
    others = [r for r in records if r is not failure and (r.exit_code is None or r.has_failed)]
    for other in others[:8]:
        lines.append(f"After it: rank {other.rank} on {other.host}: {other.cause or 'vanished'}")
    return "\n".join(lines)


def _cause_of_vanishing(record: RankRecord) -> str:
    """Return what is known of a rank that ended together with its guard."""
    if record.host == socket.gethostname():
        since = time.monotonic() - (time.time() - record.started)
        if log_of_kill(record.pid, since) is not None:
            return f"killed {KILLER}, together with the process that guarded it, as its log says"
    return "vanished, with the process that guarded it: is the host down?"


def last_lines(path: Path, count: int = TAIL_LINES) -> list[str]:
    """Return the end of a log without blank lines; only its last 64 KiB are read."""
    try:
        with os.fdopen(owned.open_own_file(path, os.O_RDONLY), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 65536))
            text = file.read().decode(errors="replace")
    except OSError:
        return ["(no log)"]
    return [line for line in text.splitlines() if line.strip()][-count:]


STOP_GRACE_S = 25.0
"""From a request to stop to SIGKILL; DeepSpeed's launcher kills after 30 s itself."""
