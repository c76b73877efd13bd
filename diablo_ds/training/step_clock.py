"""Wall time from step to step, with what is no training told apart."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator

STEP = "step_s"
EVALUATION = "evaluation_s"
TASKS = "tasks_s"
SAVING = "saving_s"


class StepClock:
    """Divides the wall time of a run among its steps, evaluating and saving; none of it is lost.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last = clock()
        self._apart: Counter[str] = Counter()

    @contextlib.contextmanager
    def apart(self, name: str) -> Iterator[None]:
        """Count the time inside the block under a name; that of an inner block under its own."""
        start, before = self._clock(), sum(self._apart.values())
        try:
            yield
        finally:
            inner = sum(self._apart.values()) - before
            self._apart[name] += self._clock() - start - inner  # type: ignore[assignment]

    def finish_step(self) -> dict[str, float]:
        """Return the seconds since the last call by name: those of the step, and what is apart."""
        now = self._clock()
        seconds = {STEP: now - self._last - sum(self._apart.values()), **self._apart}
        self._last = now
        self._apart.clear()
        return seconds
