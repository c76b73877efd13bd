"""What happened to a run, with times: its starts, and how each attempt of a launcher ended.

Read from the run folder alone and without torch, whoever wrote it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from diablo_ds.config.starts import Change, host_text, load_starts
from diablo_ds.files.layout import RunFolder
from diablo_ds.ranks.records import (
    LAST_TIME,
    RankRecord,
    first_failure,
    last_log_folder,
    log_folders,
    read_records,
)

MOST_ATTEMPTS = 1000
"""Log folders that are read; of more the last ones."""


class Event(NamedTuple):
    """Something that happened to a run."""

    time: float
    """Seconds since 1970; 0 where it is not known."""
    text: str
    step: int | None = None
    """Optimizer steps that were taken before, where that is known."""
    is_fault: bool = False

    @property
    def when(self) -> str:
        """The time by the clock of this machine; empty where it is not known."""
        return f"{datetime.fromtimestamp(self.time):%Y-%m-%d %H:%M:%S}" if self.time else ""


def read_events(files: RunFolder) -> list[Event]:
    """Return a run's events in the order of their times.

    Raises:
        UserError: if `run.json` is damaged.
    """
    events = [_started(start) for start in load_starts(files.run_config)]
    for folder in log_folders(files.logs)[-MOST_ATTEMPTS:]:
        ended = describe_end(read_records(folder, of_anyone=True))
        events += [] if ended is None else [ended]
    return sorted(events, key=lambda event: event.time)


def describe_end(records: Sequence[RankRecord]) -> Event | None:
    """Return how the ranks of one start ended; None where one has left no end."""
    ends = [record.ended for record in records if record.exit_code is not None]
    if not records or len(ends) < records[0].world_size:
        return None
    failure = first_failure(records)
    if failure is not None:
        return Event(max(ends), describe_failed(failure), is_fault=True)
    was_stopped = any(record.exit_code for record in records)
    return Event(max(ends), "stopped, as asked" if was_stopped else "all ranks ended well")


def describe_failed(record: RankRecord) -> str:
    """Return what is known of a rank that failed, on one line."""
    during = f", in {record.phase}" if record.phase else ""
    if record.exit_code is None:
        how = f"vanished{during}, with the process that guarded it"
    else:
        how = f"failed{during}: {record.cause}"
    return f"rank {record.rank} on {record.host} {how}"


def find_cause(logs: Path, rank: int, *, wait_s: float = 0.0) -> RankRecord | None:
    """Return the other rank whose failure most likely ended this process; None where none is known.

    Args:
        logs: the run's log folders.
        rank: of this process.
        wait_s: for the guards of other ranks, which record an end soon after it.
    """
    until = time.monotonic() + wait_s
    while True:
        folder = last_log_folder(logs)
        records = [] if folder is None else read_records(folder)
        if not any(record.rank == rank and record.pid == os.getpid() for record in records):
            return None  # of another start: this one has no guards
        failed = [record for record in records if record.has_failed and record.rank != rank]
        if failed or time.monotonic() > until:
            return first_failure(failed)
        time.sleep(0.1)


def _started(start: Mapping[str, Any]) -> Event:
    step = start.get("start_step")
    step = step if type(step) is int else None
    hosts = map(host_text, start.get("hosts", ()))
    changes = [Change(**change).text() for change in start.get("changes", ())]
    facts = [f"continued after step {step}" if step else "started", *hosts]
    facts += ["with " + "; ".join(changes)] if changes else []
    return Event(_seconds(start.get("date", "")), ", ".join(facts), step)


def _seconds(date: str) -> float:
    try:
        seconds = datetime.fromisoformat(date).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0
    return seconds if 0 <= seconds <= LAST_TIME else 0.0
