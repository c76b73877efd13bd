"""How far a long conversion is, on stderr; stdout is for results."""

from __future__ import annotations

import sys
import time

INTERVAL_S = 5.0
"""Seconds between two lines; work that takes less prints none."""


class Progress:
    """Prints a line from time to time.

    Args:
        what: what is done, such as "comparing".
        total: units of work, such as bytes.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._start = self._last = time.monotonic()

    def advance(self, amount: int) -> None:
        """Count work that was done."""
        self._done += amount
        now = time.monotonic()
        if now - self._last < INTERVAL_S or self._done >= self._total:
            return
        self._last = now
        left_s = (now - self._start) * (self._total - self._done) / max(1, self._done)
        share = self._done / self._total
        print(  # noqa: T201
            f"{self._what}: {share:.0%}, about {left_s:.0f} s left", file=sys.stderr, flush=True
        )
