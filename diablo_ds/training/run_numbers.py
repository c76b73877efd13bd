"""What a run came to in numbers, from the points of its metrics file; needs no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diablo_ds.files.strict_json import finite
from diablo_ds.ranks.progress import format_seconds
from diablo_ds.training.metrics_file import lowest_heldout
from diablo_ds.training.step_clock import EVALUATION, SAVING, STEP, TASKS

Points = Sequence[Mapping[str, float]]


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

    @classmethod
    def of(cls, points: Points) -> RunNumbers:
        """Return the numbers of a metrics file's points, all or those of the steps that matter."""
        steps = [point for point in points if "loss" in point]
        heldout = [point["heldout_loss"] for point in points if "heldout_loss" in point]
        best = lowest_heldout(points)
        peaks = finite_values(steps, "memory_bytes")
        return cls(
            steps=int(steps[-1]["step"]) if steps else 0,
            last_loss=finite(steps[-1]["loss"]) if steps else None,
            first_heldout=finite(heldout[0]) if heldout else None,
            last_heldout=finite(heldout[-1]) if heldout else None,
            best_heldout=None if best is None else best[1],
            best_step=None if best is None else best[0],
            tokens_per_s=_median(steps, "tokens_per_s"),
            step_s=_median(steps, STEP),
            mfu=_median(steps, "mfu"),
            peak_memory_bytes=int(max(peaks)) if peaks else None,
            stepping_s=sum(finite_values(steps, STEP)),
            evaluation_s=sum(finite_values(points, EVALUATION)),
            tasks_s=sum(finite_values(points, TASKS)),
            saving_s=sum(finite_values(points, SAVING)),
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


def finite_values(points: Points, name: str) -> list[float]:
    """Return the finite values of a field, of the points that have it."""
    return [p[name] for p in points if name in p and math.isfinite(p[name])]


def _median(points: Points, name: str) -> float | None:
    values = finite_values(points, name)
    return statistics.median(values) if values else None
