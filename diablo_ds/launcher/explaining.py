"""How a start ended, for people and for the batch script: its text and an exit code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diablo_ds.errors import UserError
from diablo_ds.files.layout import Kind, RunFolder, kind_of
from diablo_ds.ranks.exit_codes import EXIT_PORT_IN_USE, EXIT_STOPPED, EXIT_USER_ERROR
from diablo_ds.ranks.records import describe_failure, first_failure, last_log_folder, read_records


@dataclass(frozen=True)
class End:
    """How a start ended."""

    text: str
    exit_code: int
    """0 where every rank is done, `EXIT_STOPPED` where the run was stopped, the first failing
    rank's where that tells a launcher what to do, otherwise 1."""


def explain_end(folder: Path) -> End:
    """Return how the start with this log folder ended, or the last start of a run folder.

    Raises:
        UserError: if the path is no folder, or that of something else.
    """
    kind, logs, starts = kind_of(folder), folder, RunFolder(folder).logs
    if kind is Kind.RUN or starts.is_dir():
        logs = last_log_folder(starts) or folder
    elif kind not in (Kind.LOGS, Kind.EMPTY, Kind.OTHER):
        raise UserError(
            f"path must be the log folder of a start, or a run folder; got {folder}, {kind.value}"
        )
    records = read_records(logs)
    failure = first_failure(records)
    if failure is not None or not records:
        code = None if failure is None else failure.exit_code
        is_known = code in (EXIT_USER_ERROR, EXIT_PORT_IN_USE)
        return End(f"Error: {describe_failure(logs)}", code if is_known and code else 1)
    if any(record.exit_code for record in records):
        return End("No rank failed; the run was stopped.", EXIT_STOPPED)
    if len(records) < records[0].world_size:
        number = records[0].world_size - len(records)
        return End(f"Error: {number} of {records[0].world_size} ranks left no record in {logs}", 1)
    return End("No rank failed; the run is done.", 0)
