"""How far a piece of work is: in the live line of a terminal, else in plain lines now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from diablo_ds.files.shown_text import shown
from diablo_ds.ranks.live_line import live_line, shows_progress

LINE_S = 15.0
"""Seconds between lines where nobody sees them at once, as in a log file; less shows none."""
_MAX_BAR = 30
_MIN_BAR = 6
BYTES = "B"

T = TypeVar("T")


class Progress:
    """Shows what is done, how much of it, how fast, and the time that is left.

    Args:
        what: is done, such as "Loading the model".
        total: units of work; 0 where they cannot be counted, so that only the time is shown.
        unit: what is counted, in plural; `BYTES` for bytes.
        done: of it before this start.
        is_shown: False on ranks that show nothing.
    """

    def __init__(
        self, what: str, total: int = 0, unit: str = "", *, done: int = 0, is_shown: bool = True
    ) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = self._first = done
        self._is_shown = is_shown
        self._start = self._last = time.monotonic()
        self._is_live = False

    def __enter__(self) -> Progress:
        """Begin to show it."""
        self._is_live = self._is_shown and shows_progress()
        if self._is_live:
            live_line.show(self.text)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Show it no longer."""
        if self._is_live:
            live_line.remove(self.text)

    def tell(self, what: str) -> None:
        """Say what is worked on now."""
        self._what = what
        self._show()

    def advance(self, amount: int = 1) -> None:
        """Count work that was done."""
        self._done += amount
        self._show()

    def reach(self, done: int) -> None:
        """Count work up to an amount that is done in all."""
        self.advance(done - self._done)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items, and count each when the next one is asked for."""
        for item in items:
            yield item
            self.advance()

    def _show(self) -> None:
        if self._is_live:
            live_line.refresh()
            return
        now = time.monotonic()
        if self._is_shown and self._done < self._total and now - self._last >= LINE_S:
            self._last = now
            with contextlib.suppress(OSError, ValueError):  # a run goes on without it
                sys.stderr.write(f"{shown(self.text(0))}\n")
                sys.stderr.flush()

    def text(self, columns: int) -> str:
        """Return a line.

        Args:
            columns: that it may take; 0 for a plain line, without a bar and of any length.
        """
        seconds = time.monotonic() - self._start
        if not self._total:
            return _cut(f"{self._what}  {format_seconds(seconds)}", columns)
        counts = f"{self._count(self._done)} of {self._count(self._total)}"
        if self._unit not in ("", BYTES):
            counts += f" {self._unit}"
        parts = [self._what, counts]
        rate = (self._done - self._first) / seconds if seconds > 0 else 0.0
        if rate > 0 and seconds > 1:
            if self._unit == BYTES:
                parts.append(f"{format_bytes(rate)}/s")
            left = max(0, self._total - self._done) / rate
            parts.append(f"{format_seconds(left)} left")
        text = "  ".join(parts)
        if columns:
            room = columns - len(text) - 2
            if room >= _MIN_BAR:
                share = self._done / self._total
                parts.insert(1, draw_bar(share, min(room, _MAX_BAR)))
                text = "  ".join(parts)
        return _cut(text, columns)

    def _count(self, amount: float) -> str:
        return format_bytes(amount) if self._unit == BYTES else f"{amount:,}"


def draw_bar(share: float, columns: int) -> str:
    """Return a bar of so many columns, filled to a share of 0 to 1."""
    filled = round(min(1.0, max(0.0, share)) * columns)
    full, empty = "━", "─"
    encoding = getattr(sys.stderr, "encoding", "") or "ascii"
    try:
        (full + empty).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        full, empty = "#", "-"
    return full * filled + empty * (columns - filled)


def format_seconds(seconds: float) -> str:
    """Format a duration as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_bytes(amount: float) -> str:
    """Format a number of bytes in decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= size:
            return f"{amount / size:.2f} {unit}"
    return f"{amount:.0f} B"


def _cut(text: str, columns: int) -> str:
    return text[:columns] if columns else text
