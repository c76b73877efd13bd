"""What a run came to in numbers, from the points of its metrics file; needs no torch."""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from diablo_ds.files.strict_json import finite
from diablo_ds.ranks.progress import format_seconds
from diablo_ds.training.step_clock import EVALUATION, SAVING, STEP, TASKS

_APART = (EVALUATION, TASKS, SAVING)
"""Seconds after a step, in the point of the next one; those after the last are alone in theirs."""
_RATES = ("tokens_per_s", "mfu", STEP)
"""Whose medians over the steps are told."""
_WAIT = "wait_s"


@dataclass(frozen=True)
class RunNumbers:
    """The numbers of a run; what is not known is None. Losses are in nats per target token."""

    steps: int = 0
    """Steps that were taken."""
    last_loss: float | None = None
    """Of the last step, in training."""
    first_heldout: float | None = None
    last_heldout: float | None = None
    """None also where it was not finite."""
    best_heldout: float | None = None
    best_step: int | None = None
    tokens_per_s: float | None = None
    """Median over the steps, all ranks together."""
    step_s: float | None = None
    """Median over the steps, in seconds."""
    mfu: float | None = None
    """Median over the steps, as a share."""
    peak_memory_bytes: int | None = None
    """Of rank 0: allocated on a GPU, resident on a CPU."""
    stepping_s: float = 0.0
    """Seconds that all steps took together."""
    evaluation_s: float = 0.0
    tasks_s: float = 0.0
    saving_s: float = 0.0
    wait_s: float = 0.0
    """Seconds of the steps in which the slowest rank waited for data."""

    @classmethod
    def of(cls, points: Iterable[Mapping[str, float]]) -> RunNumbers:
        """Return the numbers of a metrics file's points, all or those of the steps that matter."""
        measured = Measured()
        for point in points:
            measured.add(point)
        return measured.numbers()

    def measured_text(self) -> str:
        """Return time, rate and memory of the steps in a sentence; empty where there are none."""
        if self.tokens_per_s is None or self.peak_memory_bytes is None:
            return ""
        others = self.evaluation_s + self.tasks_s + self.saving_s
        return (
            f"Steps took {format_seconds(self.stepping_s)}, evaluation and saving "
            f"{format_seconds(others)}; {self.tokens_per_s:,.0f} tokens/s, "
            f"peak memory {self.peak_memory_bytes / 1e9:.1f} GB."
        )


class Measured:
    """The points of a run as far as its numbers need them: 24 bytes a step."""

    def __init__(self) -> None:
        self._rates = {name: array("d") for name in _RATES}
        self._seconds = dict.fromkeys((STEP, _WAIT, *_APART), 0.0)
        self._peak_bytes: float | None = None
        self._last: Mapping[str, float] = {}
        self._heldout: list[float] = []
        """The first and the last."""
        self._lowest = (math.inf, -1)
        """Held-out loss and its step, the earlier of equal ones."""

    def add(self, point: Mapping[str, float]) -> None:
        """Add the next point of a metrics file."""
        if "heldout_loss" in point:
            loss = point["heldout_loss"]
            self._heldout = [*self._heldout[:1], loss]
            if math.isfinite(loss):
                self._lowest = min(self._lowest, (loss, int(point["step"])))
        if "loss" in point:
            self._last = point
            for name, values in self._rates.items():
                if (value := _finite(point, name)) is not None:
                    values.append(value)
            if (peak := _finite(point, "memory_bytes")) is not None:
                self._peak_bytes = peak if self._peak_bytes is None else max(self._peak_bytes, peak)
        for name in self._seconds if "loss" in point else _APART:
            self._seconds[name] += _finite(point, name) or 0.0

    def numbers(self) -> RunNumbers:
        """Return the numbers of the points so far."""
        heldout, (lowest, best_step) = self._heldout, self._lowest
        is_known = best_step >= 0
        return RunNumbers(
            steps=int(self._last.get("step", 0)),
            last_loss=_finite(self._last, "loss"),
            first_heldout=finite(heldout[0]) if heldout else None,
            last_heldout=finite(heldout[-1]) if heldout else None,
            best_heldout=lowest if is_known else None,
            best_step=best_step if is_known else None,
            tokens_per_s=self._median("tokens_per_s"),
            step_s=self._median(STEP),
            mfu=self._median("mfu"),
            peak_memory_bytes=None if self._peak_bytes is None else int(self._peak_bytes),
            stepping_s=self._seconds[STEP],
            evaluation_s=self._seconds[EVALUATION],
            tasks_s=self._seconds[TASKS],
            saving_s=self._seconds[SAVING],
            wait_s=self._seconds[_WAIT],
        )

    def _median(self, name: str) -> float | None:
        values = self._rates[name]
        return statistics.median(values) if values else None


def _finite(point: Mapping[str, float], name: str) -> float | None:
    value = point.get(name)
    return None if value is None else finite(value)
