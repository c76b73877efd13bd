"""The line at the bottom of a terminal that is drawn again and again; all other output is above it.

The cursor waits at its beginning. So whatever is written next, or a terminal that was made narrower
and has wrapped it, leaves nothing of it behind: all from the cursor on is erased before. The width
is asked for anew each time. Only the standard library is used here: a guard lives beside every rank
and has to stay small.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from diablo_ds.files.shown_text import shown

TERMINAL = "DIABLO_TERMINAL"
"""Environment variable of a rank whose guard passes its stderr on to a terminal: its descriptor."""
_NOTEBOOK = "JPY_PARENT_PID"
"""Environment variable that the kernels of Jupyter's notebooks have."""
ERASE = "\r\x1b[J"
"""Erases all from the beginning of the cursor's row to the end of the screen."""
DRAWN_EVERY_S = 0.1
"""At most so often the line is drawn for something new."""
_TICK_S = 1.0
"""After so long it is drawn in any case, with the time that has gone by."""
_DEFAULT_COLUMNS = 80


def is_terminal(stream: IO[Any]) -> bool:
    """Return whether a stream leads to a terminal, where what was written may be drawn over.

    A notebook gives the commands of a cell a terminal too, but keeps all that they write to it.
    """
    return stream.isatty() and not os.environ.get(_NOTEBOOK)


def shows_progress() -> bool:
    """Return whether somebody sees stderr at once, so that a line may be drawn again and again."""
    return is_terminal(sys.stderr) or bool(os.environ.get(TERMINAL))


def terminal_columns() -> int:
    """Return how wide the terminal behind stderr is now."""
    for descriptor in (2, _described(os.environ.get(TERMINAL, ""))):
        with contextlib.suppress(OSError):
            return os.get_terminal_size(descriptor).columns or _DEFAULT_COLUMNS
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isascii() and columns.isdigit() else _DEFAULT_COLUMNS


class LiveLine:
    """The one line of this process, on stderr.

    What is shown is a stack: a phase inside a run covers the run's line until it is over.
    """

    def __init__(self) -> None:
        self._makers: list[Callable[[int], str]] = []
        self._begin()

    def _begin(self) -> None:
        """Begin anew: in a fork there is no thread, the lock may be held, the line is another's."""
        self._is_beside_parents = bool(self._makers)
        self._lock = threading.RLock()
        self._makers = []
        self._is_drawn = False
        self._is_waiting = False  # for the end of a line that something else has begun
        self._last = 0.0
        self._thread: threading.Thread | None = None

    def show(self, make: Callable[[int], str]) -> None:
        """Show a line, over the one that was shown, until it is removed.

        Args:
            make: returns its text, given the number of columns that it may take.
        """
        with self._lock:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            self._makers.append(make)
            if self._thread is None:
                self._thread = threading.Thread(target=self._tick, daemon=True)
                self._thread.start()
            self._draw()

    def remove(self, make: Callable[[int], str]) -> None:
        """Show what was shown before that line, if anything."""
        with self._lock:
            self._makers = [known for known in self._makers if known != make]
            self._erase()
            self._draw()

    def refresh(self) -> None:
        """Draw the line, unless that was done just now."""
        if time.monotonic() - self._last >= DRAWN_EVERY_S:
            with self._lock:
                self._draw()

    @contextlib.contextmanager
    def aside(self, stream: io.TextIOBase, text: str) -> Iterator[None]:
        """Let a text be written to a stream inside the block as if there were no such line."""
        is_here = bool(self._makers) or self._is_beside_parents
        if not is_here or not _is_beside(stream):
            yield
            return
        with self._lock:
            self._is_drawn |= self._is_beside_parents and not self._is_waiting
            self._erase()
            yield
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
            self._is_waiting = not text.endswith(("\n", "\r"))
            self._last = time.monotonic()
            if not self._is_waiting:
                self._draw()

    def _draw(self) -> None:
        if not self._makers or self._is_waiting:
            return
        text = shown(self._makers[-1](terminal_columns() - 1)).replace("\n", " ")
        self._write(f"{ERASE}{text}\r")
        self._is_drawn, self._last = True, time.monotonic()

    def _erase(self) -> None:
        if self._is_drawn:
            self._write(ERASE)
            self._is_drawn = False

    def _write(self, text: str) -> None:
        stream: Any = sys.stderr
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
            encoded = text.encode(stream.encoding or "ascii", errors="replace")
            stream.buffer.write(encoded)
            stream.buffer.flush()

    def _tick(self) -> None:
        while True:
            time.sleep(_TICK_S)
            with self._lock:
                if not self._makers:
                    self._thread = None
                    return
                if time.monotonic() - self._last < _TICK_S:
                    continue
                if self._is_waiting:  # a text without an end must not hide the line for good
                    self._write("\n")
                    self._is_waiting = False
                self._draw()


live_line = LiveLine()
os.register_at_fork(after_in_child=live_line._begin)


def _is_beside(stream: io.TextIOBase) -> bool:
    """Return whether a stream leads to the terminal that the line is drawn on."""
    try:
        found, own = os.fstat(stream.fileno()), os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)


def _described(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else -1
