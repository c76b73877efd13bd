"""What a run came to so far, under the tags that trackers compare runs by."""

from __future__ import annotations

import math

from diablo_ds.training.history import History


def results_of(history: History) -> dict[str, float]:
    """Return the results by tag; what is not known yet, or was never finite, is left out.

    Returns:
        Losses in nats per target token, the median of tokens/s, the peak memory of rank 0, and
        the last score of each task.
    """
    numbers = history.numbers()
    peak = numbers.peak_memory_bytes
    found = {
        "best_heldout_loss": numbers.best_heldout,
        "last_heldout_loss": numbers.last_heldout,
        "last_training_loss": numbers.last_loss,
        "tokens_per_s": numbers.tokens_per_s,
        "peak_memory_GB": None if peak is None else peak / 1e9,
        **history.scores,
    }
    return {
        f"results/{name}": value
        for name, value in found.items()
        if value is not None and math.isfinite(value)
    }
