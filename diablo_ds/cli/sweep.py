"""The runs of `diablo-ds launch --sweep`: all of them checked before the first one starts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diablo_ds.cli.options import given_values
from diablo_ds.cli.run_options import RunFiles, build_run_config, find_ds_config
from diablo_ds.cli.run_start import with_global_batch, with_output
from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import settings_of
from diablo_ds.config.sweep import Axis, Combination, combinations, parse_axes
from diablo_ds.errors import UserError
from diablo_ds.launcher.sweep import SweptRun, check_sweep_folder

_NOT_SWEPT = ("output", "config")
SWEPT_SETTINGS = tuple(
    setting
    for cls in (RunFiles, RunConfig)
    for setting in settings_of(cls)
    if setting.name not in _NOT_SWEPT
)
"""What a sweep may go over."""


def read_axes(texts: Sequence[str], values: Mapping[str, Any]) -> tuple[Axis, ...]:
    """Read the --sweep options of a command.

    Args:
        texts: their values.
        values: all parameters of the command.

    Raises:
        UserError: if one is wrong, or its setting is given directly too.
    """
    given = {**given_values(RunFiles, values), **given_values(RunConfig, values)}
    return parse_axes(texts, SWEPT_SETTINGS, given)


@contextlib.contextmanager
def sweep_folder(
    axes: Sequence[Axis], values: Mapping[str, Any], world_size: int, *, reserve: bool
) -> Iterator[Path]:
    """Yield the folder of a sweep; one that was created for it is removed again on an error.

    Args:
        axes: what the sweep goes over.
        values: all parameters of the command.
        world_size: ranks of each run.
        reserve: whether to create the folder where its name is new.

    Raises:
        UserError: if it holds something else, or a setting is wrong.
    """
    first = combinations(axes)[0]
    with _naming(first):
        run_config = build_run_config({**values, **first.values}, world_size)
    if run_config.output:
        root = Path(run_config.output)
        check_sweep_folder(root)
        yield root
        return
    root = Path(with_output(run_config, reserve=reserve).output)
    try:
        yield root
    except BaseException:
        if reserve:
            with contextlib.suppress(OSError):
                root.rmdir()
        raise


def build_runs(
    root: Path, axes: Sequence[Axis], values: Mapping[str, Any], world_size: int
) -> list[SweptRun]:
    """Return the runs of a sweep, each with a folder of its own in the sweep's.

    Args:
        root: the sweep's folder.
        axes: what the sweep goes over.
        values: all parameters of the command.
        world_size: ranks of each run.

    Raises:
        UserError: if a combination is illegal, or its folder holds another run or is in use.
    """
    return [_build(root, combination, values, world_size) for combination in combinations(axes)]


def _build(
    root: Path, combination: Combination, values: Mapping[str, Any], world_size: int
) -> SweptRun:
    of_run = {**values, **combination.values, "output": str(root / combination.name)}
    with _naming(combination):
        ds_config = find_ds_config(of_run)
        run_config = build_run_config(of_run, world_size)
        run_config = with_output(run_config, reserve=False)
        run_config = with_global_batch(run_config, ds_config, [world_size], is_said=False)
    return SweptRun(combination, run_config, ds_config)


@contextlib.contextmanager
def _naming(combination: Combination) -> Iterator[None]:
    """Name a run in the errors about it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"run {combination.name} of the sweep: {error}") from None
