"""How far the study is, on stderr: a bar for people, and a line for each training that ended."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.quality.parts import TITLES, describe
from benchmarks.quality.spec import Spec
from diablo_ds.ranks.live_line import shows_progress

_BAR = 20
_DRAW_S, _LINE_S = 0.5, 60.0
"""Seconds between two bars, and between two lines where nobody sees them at once."""


class Progress:
    """Shows what is trained, how much of the planned seconds is done, and the time that is left.

    Args:
        slots: workers that train at the same time.
        deadline: by `time.monotonic`; the time left never reaches beyond it.
    """

    def __init__(self, slots: int, deadline: float) -> None:
        self._slots, self._deadline = slots, deadline
        self._start = time.monotonic()
        self._drawn = 0.0 if shows_progress() else self._start
        self._is_drawn = False
        self._running: dict[int, tuple[str, float, float]] = {}
        self._done_s = 0.0
        """Planned seconds of trainings that have ended."""
        self._left_s = 0.0
        """The same of those that wait."""
        self._num_done = self._num_left = 0

    def plan(self, num_left: int, left_s: float) -> None:
        """Take how many trainings wait, and their planned seconds."""
        self._num_left, self._left_s = num_left, left_s

    def begin(self, slot: int, part: str, spec: Spec, planned_s: float) -> None:
        """Show that a training has begun."""
        self._running[slot] = (f"{TITLES.get(part, part)}: {describe(spec)}", planned_s, 0.0)

    def step(self, slot: int, step: int, num_steps: int) -> None:
        """Show how far a training is."""
        text, planned_s, _ = self._running[slot]
        self._running[slot] = (text, planned_s, step / max(1, num_steps))

    def end(self, slot: int, record: Mapping[str, Any]) -> None:
        """Print how a training ended."""
        text, planned_s, _ = self._running.pop(slot)
        self._done_s += planned_s
        self._num_done += 1
        self.tell(f"{self._share():4.0%}  {text}: {outcome(record)}")

    def tell(self, text: str) -> None:
        """Print a line above the bar."""
        self._clear()
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    def draw(self) -> None:
        """Draw the bar; where nobody sees it at once, print a line now and then."""
        now, is_seen = time.monotonic(), shows_progress()
        if now - self._drawn < (_DRAW_S if is_seen else _LINE_S):
            return
        self._drawn = now
        share = self._share()
        filled = round(_BAR * share)
        text = "; ".join(f"{done:.0%} of {words}" for words, _, done in self._running.values())
        line = (
            f"[{'#' * filled}{'.' * (_BAR - filled)}] {share:4.0%}, {self._num_done} of about "
            f"{self._num_done + len(self._running) + self._num_left} trainings, "
            f"{60 * self._num_done / max(1e-9, (now - self._start) / 60):.0f} per hour, "
            f"{duration(self.left_s())} left; {text}"
        )
        if not is_seen:
            print(line, file=sys.stderr, flush=True)  # noqa: T201
            return
        self._clear()
        width = shutil.get_terminal_size().columns - 1
        print(line[:width], end="", file=sys.stderr, flush=True)  # noqa: T201
        self._is_drawn = True

    def left_s(self) -> float:
        """Return the seconds until all is done, or the budget ends."""
        running_s = sum(planned * (1 - share) for _, planned, share in self._running.values())
        left_s = (running_s + self._left_s) / self._slots
        return max(0.0, min(left_s, self._deadline - time.monotonic()))

    def close(self) -> None:
        """Remove the bar."""
        self._clear()

    def _share(self) -> float:
        done_s = self._done_s + sum(p * share for _, p, share in self._running.values())
        total_s = self._done_s + sum(p for _, p, _ in self._running.values()) + self._left_s
        return done_s / total_s if total_s else 1.0

    def _clear(self) -> None:
        if self._is_drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # noqa: T201
            self._is_drawn = False


def outcome(record: Mapping[str, Any]) -> str:
    """Return in words how a training ended."""
    if record["status"] == "failed":
        return f"failed, {record['reason']}"
    seconds = f"{record['seconds']['total']:.0f} s"
    if record["status"] == "diverged":
        return f"diverged in step {record['diverged_step']}, {seconds}"
    asked = record.get("accuracy")
    accuracy = "" if asked is None else f", accuracy {asked:.1%}"
    return f"held-out loss {record['heldout']:.4f}{accuracy}, {seconds}"


def duration(seconds: float) -> str:
    """Return seconds as in 2 h 05 min, 3 min or 12 s."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"
