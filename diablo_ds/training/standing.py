"""How a run stands, from its folder alone: on any host that sees it, while it lives or after."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diablo_ds.files.layout import RunFolder
from diablo_ds.files.ownership import last_owner
from diablo_ds.ranks.records import NOTE_S, RankRecord, first_failure, last_log_folder, read_records
from diablo_ds.training.run_events import describe_failed

DONE, RUNNING, STOPPED, FAILED = "done", "running", "stopped", "failed"
DIED = "died"
"""It ended without a word: killed with what guarded it, or its host is down."""
NOT_STARTED = "not started"
_SILENT_S = 3 * NOTE_S
"""Without a note of its guard for as long, a rank counts as gone."""


class Standing(NamedTuple):
    """How a run stands."""

    state: str
    """`DONE`, `RUNNING`, `STOPPED`, `FAILED`, `DIED` or `NOT_STARTED`."""
    why: str = ""
    """What else is known, for people."""
    records: tuple[RankRecord, ...] = ()
    """Of the ranks of the last start, where a launcher started it."""
    logs: Path | None = None
    """Their log folder."""

    def text(self) -> str:
        """Return it for people."""
        return f"{self.state}, {self.why}" if self.why else self.state


def find_standing(files: RunFolder) -> Standing:
    """Return how a run stands.

    A process of this machine is asked for; another machine's is judged by its heartbeat in the
    folder and by this host's clock.
    """
    logs = last_log_folder(files.logs)
    records = tuple(read_records(logs, of_anyone=True)) if logs is not None else ()
    state, why = _state_of(files, records)
    return Standing(state, why, records, logs)


def _state_of(files: RunFolder, records: Sequence[RankRecord]) -> tuple[str, str]:
    owner, now = last_owner(files.path), time.time()
    if owner is not None and owner.is_alive:
        return RUNNING, owner.owner.text()
    if any(r.exit_code is None and now - r.noted < _SILENT_S for r in records):
        return RUNNING, f"on {', '.join(sorted({r.host for r in records}))}"
    if files.is_done():
        early_stop = files.early_stop()
        return DONE, early_stop and f"stopped early {early_stop}"
    failure = first_failure(records)
    if failure is not None:
        return DIED if failure.exit_code is None else FAILED, describe_failed(failure)
    if records or (owner is not None and owner.owner.released):
        return STOPPED, ""
    if owner is not None:
        return DIED, f"with {owner.owner.text()}"
    return STOPPED if files.metrics.is_file() else NOT_STARTED, ""
