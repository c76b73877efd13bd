"""Which steps a tracker has already, so that those which are taken again are not there twice.

No package lets a point be replaced. A run that was killed takes the steps since its last checkpoint
again, with the same values; the tracker keeps what it got first.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json, write_json

STEPS_FILE = "last_steps.json"
"""In a tracker's folder."""
WRITE_S = 5.0
"""Seconds between two writes; packages hand on what they get in less."""


class TakenSteps:
    """The last step of each tag that a tracker has.

    What is written down is what it had at the write before: a process that is killed may hold some
    that its package did not store yet, and a point that is there twice is better than none.

    Args:
        folder: of the tracker.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / STEPS_FILE
        self._before = self._read()
        self._now = dict(self._before)
        self._stored = dict(self._before)
        self._last_write = time.monotonic()

    def new(self, step: int, tags: Iterable[str]) -> list[str]:
        """Return those of the tags that no earlier process recorded at this step or later."""
        return [tag for tag in tags if step > self._before.get(tag, -1)]

    def take(self, step: int, tags: Iterable[str]) -> None:
        """Note what was recorded."""
        self._now.update({tag: step for tag in tags if step >= self._now.get(tag, -1)})
        if time.monotonic() - self._last_write >= WRITE_S:
            write_json(self._file, self._stored)
            self._stored = dict(self._now)
            self._last_write = time.monotonic()

    def close(self) -> None:
        """Write all down, once the package has stored it."""
        write_json(self._file, self._now)

    def _read(self) -> dict[str, int]:
        try:
            values = read_json(self._file)
        except UserError:  # none, or damaged
            return {}
        if not isinstance(values, dict):
            return {}
        return {str(tag): step for tag, step in values.items() if type(step) is int}
