"""What the ranks of a run do, and which one is behind, from the notes of their guards."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence

from diablo_ds.ranks.progress import format_seconds
from diablo_ds.ranks.records import NOTE_S, RankRecord

_OF_STEP = re.compile(r"(.+) of step (\d{1,18})")
_ORDER = {"forward": 0, "backward": 0, "reading data": 1, "update": 2}
"""Of the phases of a step; a micro batch has a forward and a backward of its own."""
_LAST = 3
MOST_SHOWN = 4


def describe_ranks(records: Sequence[RankRecord], *, is_running: bool) -> list[str]:
    """Return the state of the ranks of the last start, as lines.

    Args:
        records: of the ranks.
        is_running: whether the run is taken to be running.
    """
    running = [record for record in records if record.exit_code is None]
    hosts = ", ".join(sorted({record.host for record in records}))
    codes = sorted({record.exit_code for record in records if record.exit_code is not None})
    ended = f"{len(records) - len(running)} ended with exit code {', '.join(map(str, codes))}"
    open_ones = f"{len(running)} {'running' if is_running else 'without an end'}"
    state = [open_ones] * bool(running) + [ended] * bool(codes)
    lines = [f"  ranks       {'; '.join(state)}; on {hosts}"]
    noted = [record for record in running if record.noted and record.phase]
    if is_running and noted:
        phases = Counter(record.phase for record in noted).most_common()
        shown = [f"{count} in {phase}" for phase, count in phases[:MOST_SHOWN]]
        more = f", and {len(phases) - MOST_SHOWN} other phases" if len(phases) > MOST_SHOWN else ""
        ago = format_seconds(max(0.0, time.time() - max(record.noted for record in noted)))
        lines.append(f"  doing       {', '.join(shown)}{more}, {ago} ago")
        lines += [f"  slowest     {_slowest(noted)}"]
    return lines


def slowest_rank(records: Sequence[RankRecord]) -> RankRecord | None:
    """Return the rank that was behind the others when their guards noted what they did.

    Guards note it at the same time. In a step ranks wait for one another in its last phases.

    Returns:
        None where all were in the same phase.
    """
    latest = max((record.noted for record in records), default=0.0)
    places = {r.rank: _place(r.phase) for r in records if latest - r.noted < NOTE_S}
    if len(set(places.values())) < 2:
        return None
    last = min(places.values())
    behind = [record for record in records if places.get(record.rank) == last]
    return max(behind, key=lambda record: record.phase_s)


def _slowest(records: Sequence[RankRecord]) -> str:
    slowest = slowest_rank(records)
    if slowest is None:
        return "no rank is behind the others"
    return (
        f"rank {slowest.rank} on {slowest.host}, in {slowest.phase} "
        f"for {format_seconds(slowest.phase_s)}"
    )


def _place(phase: str) -> tuple[int, int]:
    """Return how far a phase is: the later, the larger."""
    match = _OF_STEP.fullmatch(phase)
    return (int(match[2]), _ORDER.get(match[1], _LAST)) if match else (-1, 0)
