"""What a run came to so far, from the points of its metrics file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from diablo_ds.training.metrics_file import lowest_heldout

_TASK_PREFIX = "task/"


def results_of(points: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the results by name; what is not known yet, or was never finite, is left out.

    Args:
        points: of the metrics file.

    Returns:
        "best_heldout_loss", "last_heldout_loss", "last_training_loss", in nats per target token,
        "tokens_per_s", the median over the steps, "peak_memory_GB" of rank 0, and
        "TASK/METRIC", the last score of each task.
    """
    found: dict[str, float] = {}
    best = lowest_heldout(points)
    if best is not None:
        found["best_heldout_loss"] = best[1]
    last = {name: value for point in points for name, value in point.items()}
    for name, shown in (("heldout_loss", "last_heldout_loss"), ("loss", "last_training_loss")):
        if name in last:
            found[shown] = last[name]
    rates = [p["tokens_per_s"] for p in points if math.isfinite(p.get("tokens_per_s", math.nan))]
    if rates:
        found["tokens_per_s"] = statistics.median(rates)
    peaks = [p["memory_bytes"] for p in points if math.isfinite(p.get("memory_bytes", math.nan))]
    if peaks:
        found["peak_memory_GB"] = max(peaks) / 1e9
    found |= {
        name.removeprefix(_TASK_PREFIX): value
        for name, value in last.items()
        if name.startswith(_TASK_PREFIX) and not name.endswith("/n")
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}
