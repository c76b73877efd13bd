"""What a run remembers of its points is little, and all that its reports ask for."""

from __future__ import annotations

import math
import statistics
import tracemalloc

from diablo_ds.training.history import History
from diablo_ds.training.results import results_of


def _step(step: int) -> dict[str, float]:
    """As the loop reports it."""
    values = {
        "loss": 3.0 / step if step % 7 else math.nan,
        "learning_rate": 1e-3 * step,
        "grad_norm": 0.5 * step,
        "tokens_per_s": 100.0 + step % 13,
        "wait_s": 0.25,
        "step_s": 1.0 + step % 5,
        "memory_bytes": 1e9 + step % 3,
        "memory_now_bytes": 1e9 * step,
        "examples_seen": 8.0 * step,
        "epoch": step / 100,
        "tokens_seen": 1000.0 * step,
    }
    return {"step": step, **values, **({"saving_s": 4.0} if step % 10 == 1 else {})}


def test_a_step_takes_some_bytes_however_much_is_measured_of_it():
    history = History()
    tracemalloc.start()
    try:
        for step in range(1, 20_001):
            history.add(_step(step))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(history.losses) == 20_000
    assert taken < 60 * 20_000


def test_numbers_curves_and_scores_are_those_of_all_points():
    steps = [_step(step) for step in range(1, 41)]
    others = [
        {"step": 0, "heldout_loss": 2.5},
        {"step": 20, "heldout_loss": 1.5, "evals_without_better": 0.0},
        {"step": 30, "heldout_loss": 1.5},
        {"step": 20, "task/a/accuracy": 0.25, "task/a/n": 8.0},
        {"step": 40, "task/a/accuracy": 0.5, "task/a/n": 8.0},
        {"step": 40, "heldout_loss": math.nan},
        {"step": 40, "evaluation_s": 2.0, "saving_s": 8.0},
    ]
    history = History()
    for point in sorted([*steps, *others], key=lambda point: point["step"]):
        history.add(point)
    numbers = history.numbers()
    assert (numbers.first_heldout, numbers.last_heldout) == (2.5, None)
    assert (numbers.best_step, numbers.best_heldout) == (20, 1.5)
    assert (numbers.steps, numbers.last_loss) == (40, 3.0 / 40)
    assert numbers.tokens_per_s == statistics.median(p["tokens_per_s"] for p in steps)
    assert numbers.step_s == statistics.median(p["step_s"] for p in steps)
    assert numbers.stepping_s == sum(p["step_s"] for p in steps)
    assert (numbers.saving_s, numbers.evaluation_s, numbers.mfu) == (4 * 4.0 + 8.0, 2.0, None)
    assert numbers.peak_memory_bytes == 1e9 + 2
    assert list(history.heldout)[:3] == [(0, 2.5), (20, 1.5), (30, 1.5)]
    assert history.losses[-1] == (40, 3.0 / 40)
    assert history.losses[:2] == [(1, 3.0), (2, 1.5)]
    assert history.heldout_loss(30) == 1.5
    assert history.heldout_loss(1) is None
    assert history.scored_tasks(20) == history.scored_tasks(40) == {"a"}
    assert history.tokens_seen == 40_000
    assert results_of(history)["results/a/accuracy"] == 0.5
    assert "results/last_heldout_loss" not in results_of(history)
