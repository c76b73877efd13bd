"""Learning-rate schedules as a pure function of the step."""

from __future__ import annotations

import math

from diablo_ds.config.choices import SCHEDULES
from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError


def lr_factor(schedule: str, step: int, *, num_steps: int, warmup_steps: int) -> float:
    """Return the factor on the peak learning rate for a step.

    Args:
        schedule: one of `SCHEDULES`; "linear" and "cosine" fall to 0 one step after the last.
        step: the step about to be taken, counted from 0.
        num_steps: number of steps in the run.
        warmup_steps: steps over which the factor rises linearly; the first one is not 0.

    Returns:
        A factor in [0, 1].
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    if schedule == "constant":
        return 1.0
    raise UserError(f"schedule must be one of {', '.join(SCHEDULES)}; got schedule={schedule!r}")


def learning_rate(run_config: RunConfig, step: int, num_steps: int) -> float:
    """Return the learning rate of a step, a function of the settings and the steps of the run.

    Args:
        run_config: the run config.
        step: the step about to be taken, counted from 0.
        num_steps: number of steps in the run.

    Raises:
        ValueError: if the rate is still open.
    """
    if not run_config.learning_rate:
        raise ValueError("an open learning_rate is chosen by resolve_run, before the first step")
    return run_config.learning_rate * lr_factor(
        run_config.schedule, step, num_steps=num_steps, warmup_steps=run_config.warmup_steps
    )


def describe_warmup(num_steps: int, warmup_steps: int) -> str:
    """Return a sentence where the run ends before its warm-up does; empty where it does not."""
    if num_steps > warmup_steps:
        return ""
    peak = lr_factor("constant", num_steps - 1, num_steps=num_steps, warmup_steps=warmup_steps)
    return (
        f"The warm-up is longer than the run: warmup_steps={warmup_steps}, {num_steps} steps; the "
        f"learning rate reaches {peak:.0%} of what was asked for; give fewer --warmup-steps"
    )
