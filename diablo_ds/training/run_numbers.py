"""What a run came to in numbers, from the points of its metrics file; needs no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from diablo_ds.files.strict_json import finite
from diablo_ds.ranks.progress import format_seconds
from diablo_ds.training.metrics_file import lowest_heldout
from diablo_ds.training.step_clock import EVALUATION, SAVING, STEP, TASKS

_APART = (EVALUATION, TASKS, SAVING)
"""Seconds after a step, in the point of the next one; those after the last are alone in theirs."""
_OF_STEPS = ("tokens_per_s", "mfu", "memory_bytes", "wait_s", STEP, *_APART)


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
        found: dict[str, list[float]] = {name: [] for name in _OF_STEPS}
        heldout, last = [], None
        for point in points:
            if "heldout_loss" in point:
                heldout.append(point)
            if "loss" in point:
                last = point
            for name in found if "loss" in point else _APART:
                if math.isfinite(value := point.get(name, math.nan)):
                    found[name].append(value)
        best, peaks = lowest_heldout(heldout), found["memory_bytes"]
        return cls(
            steps=int(last["step"]) if last else 0,
            last_loss=finite(last["loss"]) if last else None,
            first_heldout=finite(heldout[0]["heldout_loss"]) if heldout else None,
            last_heldout=finite(heldout[-1]["heldout_loss"]) if heldout else None,
            best_heldout=None if best is None else best[1],
            best_step=None if best is None else best[0],
            tokens_per_s=_median(found["tokens_per_s"]),
            step_s=_median(found[STEP]),
            mfu=_median(found["mfu"]),
            peak_memory_bytes=int(max(peaks)) if peaks else None,
            stepping_s=sum(found[STEP]),
            evaluation_s=sum(found[EVALUATION]),
            tasks_s=sum(found[TASKS]),
            saving_s=sum(found[SAVING]),
            wait_s=sum(found["wait_s"]),
        )

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


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
