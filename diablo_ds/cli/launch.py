"""The command `diablo-ds launch`: options to cluster, checks, then the run."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from diablo_ds.cli.cluster import ClusterOptions, build_cluster
from diablo_ds.cli.console import CONTEXT, clean_errors
from diablo_ds.cli.options import GroupedCommand, from_options, options_of
from diablo_ds.cli.run_options import RunFiles, build_run_config, run_options
from diablo_ds.cli.run_start import with_global_batch, with_output
from diablo_ds.cli.same_command import same_command
from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import check_settings, setting
from diablo_ds.errors import UserError
from diablo_ds.files.layout import RunFolder
from diablo_ds.launcher.cluster import Cluster
from diablo_ds.ranks.exit_codes import EXIT_USER_ERROR
from diablo_ds.ranks.masking import COMMAND, given_command
from diablo_ds.ranks.terminal import unblocked


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """What `diablo-ds launch` does with a cluster: check it, start there, start again.

    Raises:
        UserError: if a value is illegal, or two do not go together.
    """

    min_nodes: int | None = setting(
        None,
        "Hosts with which a restart may continue where others are lost.",
        "restarts",
        minimum=1,
        shown_default="all",
    )
    log_folder: Path | None = setting(
        None,
        "Folder for one log per rank, shared by all hosts.",
        "start",
        shown_default="logs in the run folder",
    )
    check: bool = setting(False, "Check the hosts and print a table; start nothing.", "start")
    skip_checks: bool = setting(False, "Start without checking the hosts.", "start")
    dry_run: bool = setting(False, "Print the command that would run; start nothing.", "start")

    def __post_init__(self) -> None:
        check_settings(self)
        given = [
            f"--{name.replace('_', '-')}"
            for name in ("check", "skip_checks", "dry_run")
            if getattr(self, name)
        ]
        if len(given) > 1:
            raise UserError(
                f"give one of --check, --skip-checks, --dry-run; got {', '.join(given)}"
            )


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@options_of(ClusterOptions)
@options_of(StartOptions)
@run_options
def launch(**values: Any) -> None:
    """Train on this machine's GPUs or on the hosts of a hostfile, and survive what breaks.

    All options of `diablo-ds train` go with it. Without a hostfile the ranks are on this machine.
    """
    with clean_errors(), unblocked("the logs of the ranks have all of theirs"):
        start = from_options(StartOptions, values)
        options = from_options(ClusterOptions, values)
        ds_config = from_options(RunFiles, values).ds_config
        cluster = build_cluster(options)
        if start.min_nodes is not None and (cluster.runner == "local" or not options.max_restarts):
            raise UserError(
                "min_nodes is for restarts on the hosts of a hostfile; got "
                f"min_nodes={start.min_nodes}, max_restarts={options.max_restarts}, "
                f"runner={cluster.runner!r}"
            )
        run_config = build_run_config(values, cluster.world_size)
        run_config = with_global_batch(run_config, ds_config, [cluster.world_size])
        if not run_config.output and cluster.node_rank is not None and len(cluster.hosts) > 1:
            raise UserError(
                "a run that is started on each host by hand needs output, the same on all; got none"
            )
        sys.exit(_launch(run_config, ds_config, cluster, start, options.max_restarts))


def _launch(
    asked: RunConfig, ds_config: Path, cluster: Cluster, start: StartOptions, max_restarts: int
) -> int:
    """Show, check or start a run; return the exit code."""
    from diablo_ds.config.words import shell_text
    from diablo_ds.launcher import checks, deepspeed_command, log_folders, supervisor

    run_config = with_output(asked, reserve=False)
    if start.dry_run:
        logs = start.log_folder or RunFolder(Path(run_config.output)).logs
        folder = log_folders.next_log_folder(logs, cluster)
        words = deepspeed_command.build_command(run_config, ds_config, cluster, folder)
        click.echo(shell_text(words, deepspeed_command.launcher_env(cluster)))
        if cluster.hidden_env:
            names = ", ".join(cluster.hidden_env)
            click.echo(
                f"Not in the command, and handed over by diablo-ds launch: {names}", err=True
            )
        return 0
    if start.check or not start.skip_checks:
        missing = checks.missing_command(cluster)
        if missing:
            raise UserError(missing)
        found = checks.check_hosts(run_config, ds_config, cluster)
        is_good = not any(host.problems for host in found)
        if start.check or not is_good:
            click.echo(checks.table(found), err=not start.check)
            return 0 if is_good else EXIT_USER_ERROR
    os.environ[COMMAND] = given_command()
    run_config = with_output(asked, reserve=True)
    logs = start.log_folder or RunFolder(Path(run_config.output)).logs
    end = supervisor.run_until_done(
        run_config,
        ds_config,
        cluster,
        logs,
        max_restarts=max_restarts,
        min_nodes=start.min_nodes or len(cluster.hosts),
        same_command=same_command(run_config.output),
    )
    return end.exit_code
