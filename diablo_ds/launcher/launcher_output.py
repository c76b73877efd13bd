"""What a run's launcher prints: lines of its own, and those of `deepspeed` and rank 0."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from pathlib import Path

from diablo_ds.files import owned
from diablo_ds.files.shown_text import shown_line
from diablo_ds.ranks.noise import is_noise
from diablo_ds.ranks.records import FAILED_FILE
from diablo_ds.ranks.terminal import ShownStream

HOLD_S = 8.0
"""How long an error may be held back where no rank has failed yet."""
_ERROR_SIGNS = ("Traceback (most recent call last)", "[ERROR]", "terminate called after")


def say(text: str) -> None:
    """Print a line of the launcher's own to stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class Printer:
    """Passes output on, but holds back an error until it is known whose was the first.

    Args:
        folder: the log folder, where a failure is announced.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: list[str] = []
        self._held_since = 0.0
        self._lock = threading.Lock()

    def take(self, line: str) -> None:
        """Print a line, or hold it."""
        if is_noise(line):
            return
        with self._lock:
            if self._held or any(sign in line for sign in _ERROR_SIGNS):
                self._held_since = self._held_since if self._held else time.monotonic()
                self._held.append(line)
            else:
                self._print(line)

    def flush_old(self) -> None:
        """Print what was held for long, where no rank failed."""
        is_old = bool(self._held) and time.monotonic() - self._held_since > HOLD_S
        if is_old and not owned.is_own_file(self.folder / FAILED_FILE):
            self.flush()

    def flush(self) -> None:
        """Print what was held."""
        with self._lock:
            for line in self._held:
                self._print(line)
            self._held.clear()

    def _print(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            if isinstance(sys.stdout, ShownStream):
                sys.stdout.write_line(line)
            else:
                sys.stdout.write(shown_line(line))
            sys.stdout.flush()
