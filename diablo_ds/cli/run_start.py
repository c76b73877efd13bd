"""What `launch` and `slurm` settle before ranks start: run folder, global batch, warnings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from diablo_ds.config.batch_sizes import MOST_MICRO_BATCH
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import read_ds_config
from diablo_ds.errors import UserError
from diablo_ds.ranks.environment import RankVariables


def with_global_batch(
    run_config: RunConfig, ds_config: Path, world_sizes: Sequence[int], *, is_said: bool = True
) -> RunConfig:
    """Return the run config with a global batch, so that all starts of the run have the same.

    The ranks choose what else is open.

    Args:
        run_config: the run config, with its run folder.
        ds_config: DeepSpeed config file.
        world_sizes: the numbers of ranks that the run may get; an open global batch suits all.
        is_said: whether the batch equation is printed where something was chosen.

    Raises:
        UserError: if a given batch does not divide, or the file cannot be read.
    """
    from diablo_ds.config.batch_resolution import resolve_batch
    from diablo_ds.training.run_folder import recorded_config

    values = read_ds_config(ds_config)
    policy = values if isinstance(values, dict) else {}  # the ranks name what is wrong with it
    recorded = recorded_config(run_config.output)
    if not run_config.global_batch and recorded is not None:
        run_config = replace(run_config, global_batch=recorded.global_batch)
    if not run_config.global_batch:
        batch = resolve_batch(run_config, math.lcm(*world_sizes), policy=policy)
        common = batch.run_config.global_batch
        if len(world_sizes) > 1 and common > MOST_MICRO_BATCH * max(world_sizes):
            raise UserError(
                "global_batch must be given where no moderate one divides over every number of "
                f"ranks; got ranks={', '.join(map(str, world_sizes))}, the smallest that does is "
                f"{common}"
            )
        run_config = replace(run_config, global_batch=common)
    for world_size in world_sizes:
        batch = resolve_batch(run_config, world_size, recorded=recorded, policy=policy)
        if (batch.kept or batch.sizes.reason) and is_said:
            click.echo(batch.run_config.batch_equation(world_size), err=True)
    return run_config


def with_output(run_config: RunConfig, *, reserve: bool, for_later: bool = False) -> RunConfig:
    """Return the run config with a run folder, so that a restart finds it.

    Args:
        run_config: the run config.
        reserve: whether to create the folder where its name is new, so that no other run gets it.
        for_later: whether the run waits in a queue, so that the folder may be in use until it
            starts.

    Raises:
        UserError: if the folder that it names holds something else, or is in use; or if there is no
            adapter where the run is to start from one.
    """
    from diablo_ds.training.run_folder import (
        choose_run_folder,
        find_initial_adapter,
        reserve_run_folder,
    )

    if not for_later or Path(run_config.init_adapter).exists():
        find_initial_adapter(run_config)
    choose = reserve_run_folder if reserve else choose_run_folder
    return replace(run_config, output=str(choose(run_config, for_later=for_later)))


def warn_of_secrets(variables: RankVariables) -> None:
    """Say which secrets this process's own command line shows to everybody."""
    for name in variables.written_out:
        click.echo(
            f"Warning: every user of this machine can read {name} in the command line; export it "
            f"and give --env {name}",
            err=True,
        )
