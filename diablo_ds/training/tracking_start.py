"""The trackers of a run, opened as a process begins or continues it."""

from __future__ import annotations

import math
from typing import Any

from diablo_ds.config.choices import AUTO
from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import settings_of
from diablo_ds.errors import UserError
from diablo_ds.files.layout import RunFolder
from diablo_ds.ranks import distributed
from diablo_ds.ranks.log import logger
from diablo_ds.ranks.tensorboard import TensorBoard
from diablo_ds.ranks.tracker import Tracker
from diablo_ds.training.evaluations import interval
from diablo_ds.training.startup import Run
from diablo_ds.training.tracking import Tracking

_OF_A_MACHINE = ("output", "cache_folder", "trust_remote_code", "allow_group_write")
"""Settings that say nothing of a run's numbers or speed."""


def open_tracking(run: Run) -> Tracking:
    """Open a run's trackers, and tell them what it is made with.

    To be called on rank 0, after the start was recorded in `run.json`.
    """
    # A start from step 0 evaluates and records that step again.
    last_step = run.start_step or -1
    trackers: list[Tracker] = []
    try:
        trackers.append(TensorBoard(RunFolder(run.folder).tensorboard, last_step=last_step))
    except (UserError, OSError) as error:
        logger.warning(f"TensorBoard gets nothing of this run: {error}")
    config = run.run_config
    tracking = Tracking(trackers, log_every=config.log_every, max_grad_norm=config.max_grad_norm)
    tracking.hyperparameters(hyperparameters(run))
    tracking.results(
        run.start_step,
        {"trainable_parameters": sum(math.prod(d.shape) for d in run.engine.deltas.values())},
    )
    return tracking


def hyperparameters(run: Run) -> dict[str, bool | int | float | str]:
    """Return what a run is made with: chosen values, none that is open or empty."""
    config = run.run_config
    resolved: dict[str, Any] = {
        "eval_every": interval(config.eval_every, run.num_steps),
        "save_every": interval(config.save_every, run.num_steps),
        "max_steps": run.num_steps,
        "zero_stage": run.engine.stage,
        "world_size": distributed.world_size(),
    }
    if config.eval_tasks:
        resolved["eval_task_every"] = interval(config.eval_task_every, run.num_steps)
    values = {
        declared.name: getattr(config, declared.name)
        for declared in settings_of(RunConfig)
        if declared.name not in _OF_A_MACHINE
    } | resolved
    shown = {
        name: ", ".join(value) if isinstance(value, tuple) else value
        for name, value in values.items()
    }
    return {name: value for name, value in shown.items() if value not in ("", None, AUTO)}
