"""What a rank writes: taken at once and always, kept in its log, passed on as fast as it is read.

A rank that writes into a pipe which nobody empties stands still. So its guard reads without pause,
and waits neither for the launcher nor for a disk. Only the standard library is used here.
"""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

from diablo_ds.files import owned
from diablo_ds.ranks.live_line import ERASE, TERMINAL, is_terminal
from diablo_ds.ranks.terminal import Outlet

DRAIN_S = 2.0
"""How long the end of a rank waits for a log or a launcher that takes no more output."""
_READ_BYTES = 65536
_READS_A_TURN = 16
"""So that a rank which writes without end does not keep its guard from looking after it."""


class RankOutput:
    """The pipes between a rank and its guard, and where they lead.

    Args:
        log: file for stdout and stderr; none to pass both on as they are.
        is_shown: whether output is passed on to the launcher as well.
    """

    def __init__(self, log: Path | None, *, is_shown: bool) -> None:
        self._is_shown = is_shown or log is None
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._log = None if log is None else owned.open_own_file(log, flags)
        self._log_outlet = Outlet("they could not be written to this file")
        remark = "the launcher did not read them"
        self._shown = Outlet(remark if log is None else f"{remark}; all are in {log}")
        self._pipes: dict[int, int] = {}
        """By descriptor to read from: the one to pass it on to."""
        self.ends: list[int] = []
        """The rank's stdout and stderr, until it has started."""
        self._terminal = os.dup(2) if log is None and is_terminal(sys.stderr) else None
        # After such output the cursor may stand on a live line: rank 0's, beside another rank's.
        self._before_live = (b"\r",) if is_shown else (b"\r", b"\n")
        self._is_on_live = not is_shown
        # Through two pipes what a rank writes to one terminal would change its order.
        is_one = log is not None or (self._terminal is not None and _lead_to_one_place())
        for target in (1,) if is_one else (1, 2):
            source, end = os.pipe()
            os.set_blocking(source, False)
            self._pipes[source] = target
            self.ends.append(end)

    def environment(self) -> dict[str, str]:
        """Return variables that tell a rank of the terminal behind its pipe."""
        if self._terminal is None:
            return {}
        size = os.get_terminal_size(self._terminal)
        columns, lines = size.columns or 80, size.lines or 24
        return {TERMINAL: str(self._terminal), "COLUMNS": str(columns), "LINES": str(lines)}

    @property
    def inherited(self) -> list[int]:
        """What the rank needs besides its streams: a terminal, to ask how wide it is."""
        return [] if self._terminal is None else [self._terminal]

    def start(self, poller: select.poll) -> None:
        """Close the rank's ends of the pipes, and watch the other ones."""
        for end in [*self.ends, *self.inherited]:
            os.close(end)
        for source in self._pipes:
            poller.register(source, select.POLLIN)

    def take(self, source: int) -> bool:
        """Read a part of what is in a pipe; return whether more can come. Never waits."""
        for _ in range(_READS_A_TURN):
            try:
                data = os.read(source, _READ_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._keep(data)
            if self._is_shown:
                self._shown.write(self._above_live_line(data), self._pipes[source])
        return True

    def _above_live_line(self, data: bytes) -> bytes:
        """Return output that erases the live line first, where the rank itself did not.

        Libraries write to stderr on their own.
        """
        if self._terminal is None:
            return data
        if self._is_on_live and not data.startswith(b"\r"):
            data = ERASE.encode() + data
        self._is_on_live = data.endswith(self._before_live)
        return data

    def say(self, text: str) -> None:
        """Write a line of the guard's own, to the log and to the launcher's stderr."""
        data = f"{text}\n".encode(errors="replace")
        self._keep(data)
        self._shown.write(self._above_live_line(data), 2)

    def take_rest(self) -> None:
        """Take what an ended rank left in its pipes, and see it into the log."""
        for source in self._pipes:
            self.take(source)
        self._log_outlet.drain(DRAIN_S)

    def close(self) -> None:
        """Give the launcher some time to read the rest."""
        sys.stdout.flush()
        if self._is_on_live and self._terminal is not None:  # the line of a rank that was killed
            self._shown.write(ERASE.encode(), 2)
        self._shown.drain(DRAIN_S)

    def _keep(self, data: bytes) -> None:
        if self._log is not None:
            self._log_outlet.write(data, self._log)


def _lead_to_one_place() -> bool:
    """Return whether stdout and stderr are the same file."""
    out, err = os.fstat(1), os.fstat(2)
    return (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino)
