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
from diablo_ds.cli.run_options import RunFiles, build_run_config, find_ds_config, run_options
from diablo_ds.cli.run_start import with_global_batch, with_output
from diablo_ds.cli.same_command import same_command
from diablo_ds.config.given_file import keep_given_file
from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import check_settings, setting
from diablo_ds.errors import UserError
from diablo_ds.files.layout import RunFolder
from diablo_ds.launcher.cluster import Cluster
from diablo_ds.ranks.exit_codes import EXIT_USER_ERROR
from diablo_ds.ranks.masking import COMMAND, given_command
from diablo_ds.ranks.terminal import unblocked
from diablo_ds.training.extending import describe_done
from diablo_ds.training.run_folder import recorded_config


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
    sweep: tuple[str, ...] = setting(
        (),
        "SETTING=VALUE,VALUE,...: one run for each value, one after the other on this machine; "
        "repeatable, for all combinations. Semicolons separate values that hold commas.",
        "start",
    )

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
        ds_config = find_ds_config(values)
        cluster = build_cluster(options)
        if start.min_nodes is not None and (cluster.runner == "local" or not options.max_restarts):
            raise UserError(
                "min_nodes is for restarts on the hosts of a hostfile; got "
                f"min_nodes={start.min_nodes}, max_restarts={options.max_restarts}, "
                f"runner={cluster.runner!r}"
            )
        if start.sweep:
            sys.exit(_launch_sweep(values, cluster, start, options.max_restarts))
        run_config = build_run_config(values, cluster.world_size)
        run_config = with_global_batch(run_config, ds_config, [cluster.world_size])
        if not run_config.output and cluster.node_rank is not None and len(cluster.hosts) > 1:
            raise UserError(
                "a run that is started on each host by hand needs output, the same on all; got none"
            )
        given_file = from_options(RunFiles, values).config
        sys.exit(_launch(run_config, ds_config, cluster, start, options.max_restarts, given_file))


def _launch(
    asked: RunConfig,
    ds_config: Path,
    cluster: Cluster,
    start: StartOptions,
    max_restarts: int,
    given_file: Path | None,
) -> int:
    """Show, check or start a run; return the exit code."""
    run_config = with_output(asked, reserve=False)
    if not start.check and (done := describe_done(run_config)):
        click.echo(done)
        return 0
    if start.dry_run:
        click.echo(_command_text(run_config, ds_config, cluster, start.log_folder))
        _say_hidden(cluster)
        return 0
    code = _check_hosts(run_config, ds_config, cluster, start)
    if code is not None:
        return code
    from diablo_ds.launcher import supervisor

    os.environ[COMMAND] = given_command()
    run_config = with_output(asked, reserve=True)
    if given_file is not None:  # the ranks get its settings, as options
        keep_given_file(given_file, Path(run_config.output))
    end = supervisor.run_until_done(
        run_config,
        ds_config,
        cluster,
        start.log_folder or RunFolder(Path(run_config.output)).logs,
        max_restarts=max_restarts,
        min_nodes=start.min_nodes or len(cluster.hosts),
        same_command=same_command(run_config.output),
    )
    return end.exit_code


def _launch_sweep(
    values: dict[str, Any], cluster: Cluster, start: StartOptions, max_restarts: int
) -> int:
    """Show, check or start the runs of a sweep; return the exit code."""
    from diablo_ds.cli.sweep import build_runs, read_axes, sweep_folder
    from diablo_ds.launcher import supervisor
    from diablo_ds.launcher.sweep import Sweep, SweptRun, check_targets_of

    if cluster.runner != "local":
        raise UserError(
            "a sweep must run on this machine alone; got sweep with "
            f"runner={cluster.runner!r}, hosts={cluster.describe()}; on SLURM, diablo-ds slurm "
            "--sweep makes an array job"
        )
    axes = read_axes(start.sweep, values)
    starts_nothing = start.dry_run or start.check
    with sweep_folder(axes, values, cluster.world_size, reserve=not starts_nothing) as root:
        runs = build_runs(root, axes, values, cluster.world_size)
        logs = {run.name: start.log_folder and start.log_folder / run.name for run in runs}
        if start.dry_run:
            for run in runs:
                text = _command_text(run.run_config, run.ds_config, cluster, logs[run.name])
                click.echo(f"# {run.name}\n{text}")
            _say_hidden(cluster)
            return 0
        code = _check_hosts(runs[0].run_config, runs[0].ds_config, cluster, start)
        if code is None and not start.skip_checks:
            check_targets_of(runs, cluster)
    if code is not None:
        return code
    os.environ[COMMAND] = given_command()
    again = same_command(str(root))
    given_file = from_options(RunFiles, values).config

    def start_run(run: SweptRun) -> supervisor.RunEnd:
        if given_file is not None:
            keep_given_file(given_file, Path(run.run_config.output))
        return supervisor.run_until_done(
            run.run_config,
            run.ds_config,
            cluster,
            logs[run.name] or RunFolder(Path(run.run_config.output)).logs,
            max_restarts=max_restarts,
            min_nodes=1,
            same_command=again,
        )

    return Sweep(root, axes, runs, again).run(start_run)


def _command_text(
    run_config: RunConfig, ds_config: Path, cluster: Cluster, log_folder: Path | None
) -> str:
    """Return the command that would start a run, as a line for a shell."""
    from diablo_ds.config.words import shell_text
    from diablo_ds.launcher import deepspeed_command, log_folders

    logs = log_folder or RunFolder(Path(run_config.output)).logs
    folder = log_folders.next_log_folder(logs, cluster)
    recorded = recorded_config(run_config.output)
    words = deepspeed_command.build_command(
        run_config, ds_config, cluster, folder, recorded=recorded
    )
    return shell_text(words, deepspeed_command.launcher_env(cluster))


def _say_hidden(cluster: Cluster) -> None:
    if cluster.hidden_env:
        names = ", ".join(cluster.hidden_env)
        click.echo(f"Not in the command, and handed over by diablo-ds launch: {names}", err=True)


def _check_hosts(
    run_config: RunConfig, ds_config: Path, cluster: Cluster, start: StartOptions
) -> int | None:
    """Check the hosts as far as was asked for; return an exit code where nothing is started."""
    from diablo_ds.launcher import checks

    if start.skip_checks:
        return None
    missing = checks.missing_command(cluster)
    if missing:
        raise UserError(missing)
    found = checks.check_hosts(run_config, ds_config, cluster)
    is_good = not any(host.problems for host in found)
    if is_good and not start.check:
        return None
    click.echo(checks.table(found), err=not start.check)
    return 0 if is_good else EXIT_USER_ERROR
