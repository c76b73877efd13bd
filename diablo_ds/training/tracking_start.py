"""The trackers of a run, opened as a process begins or continues it."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

from diablo_ds.config.choices import AUTO
from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import settings_of
from diablo_ds.config.starts import load_starts
from diablo_ds.files.layout import RunFolder
from diablo_ds.ranks import distributed
from diablo_ds.ranks.log import logger
from diablo_ds.ranks.tensorboard import TensorBoard
from diablo_ds.ranks.tracker import Tracker
from diablo_ds.trackers.process import TITLES, TrackerProcess
from diablo_ds.training.evaluations import interval
from diablo_ds.training.run_events import read_events
from diablo_ds.training.run_numbers import RunNumbers
from diablo_ds.training.run_table import run_table
from diablo_ds.training.startup import Run
from diablo_ds.training.tracking import Tracking

_OF_A_MACHINE = (
    "output",
    "cache_folder",
    "trust_remote_code",
    "allow_group_write",
    "group_readable",
    "allow_changed_data",
    "allow_code_execution",
    "weak_sandbox",
    "track_delta_norms",
    "report_to",
    "profile_steps",
)
"""Settings that say nothing of a run's numbers or speed."""


def open_tracking(run: Run) -> Tracking:
    """Open a run's trackers, and tell them what it is made with.

    To be called on rank 0, after the start was recorded in `run.json`.
    """
    # A start from step 0 evaluates and records that step again.
    last_step = run.start_step or -1
    config, files = run.run_config, RunFolder(run.folder)
    opened: dict[str, Callable[[], Tracker]] = {
        "TensorBoard": lambda: TensorBoard(files.tensorboard, last_step=last_step)
    }
    for kind in config.report_to:
        opened[TITLES[kind]] = partial(
            TrackerProcess,
            kind,
            files.tracker(kind),
            run.folder.absolute().name,
            start_step=run.start_step,
        )
    trackers: list[Tracker] = []
    for title, build in opened.items():
        try:
            trackers.append(build())
        except Exception as error:  # as in `Tracking`, whatever it is
            logger.warning(f"{title} gets nothing of this run: {error}")
    if config.report_to:
        names = ", ".join(TITLES[kind] for kind in config.report_to)
        logger.info(f"Reporting to {names} too, by processes in {files.tracker('')}")
    step = run.start_step
    num_trainable = sum(math.prod(delta.shape) for delta in run.engine.deltas.values())
    start, placement = load_starts(files.run_config)[-1], run.engine.placement_table()

    def describe(numbers: RunNumbers) -> str:
        return run_table(
            config,
            start,
            numbers,
            num_steps=run.num_steps,
            num_trainable=num_trainable,
            placement=placement,
        )

    tracking = Tracking(
        trackers,
        log_every=config.log_every,
        max_grad_norm=config.max_grad_norm,
        describe=describe,
    )
    tracking.hyperparameters(hyperparameters(run))
    for event in read_events(files):
        tracking.event(step, datetime.fromtimestamp(event.time).astimezone(), event.text)
    tracking.scalars(step, {"results/trainable_parameters": num_trainable})
    tracking.text(step, "run", describe(RunNumbers()))
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
