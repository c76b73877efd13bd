"""What a run came to so far, under the tags that trackers compare runs by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from diablo_ds.training.metrics_file import TASK_PREFIX
from diablo_ds.training.run_numbers import RunNumbers


def results_of(points: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the results by tag; what is not known yet, or was never finite, is left out.

    Args:
        points: of the metrics file.

    Returns:
        Losses in nats per target token, the median of tokens/s, the peak memory of rank 0, and
        the last score of each task.
    """
    numbers = RunNumbers.of(points)
    peak = numbers.peak_memory_bytes
    found = {
        "best_heldout_loss": numbers.best_heldout,
        "last_heldout_loss": numbers.last_heldout,
        "last_training_loss": numbers.last_loss,
        "tokens_per_s": numbers.tokens_per_s,
        "peak_memory_GB": None if peak is None else peak / 1e9,
    }
    for point in points:
        if "loss" not in point:  # scores have points of their own
            found |= {
                name.removeprefix(TASK_PREFIX): score
                for name, score in point.items()
                if name.startswith(TASK_PREFIX) and not name.endswith("/n")
            }
    return {
        f"results/{name}": value
        for name, value in found.items()
        if value is not None and math.isfinite(value)
    }
