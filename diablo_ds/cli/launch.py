"""The command `diablo-ds launch`: options to cluster, checks, then the run."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from diablo_ds.cli.console import CONTEXT, clean_errors
from diablo_ds.cli.run_options import DEFAULT_DS_CONFIG, build_run_config, run_options
from diablo_ds.config.batch_sizes import MOST_MICRO_BATCH
from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json
from diablo_ds.launcher.cluster import RUNNERS, SSH_RUNNERS, Cluster, Host, read_hostfile
from diablo_ds.launcher.devices import NAMES as DEVICE_NAMES
from diablo_ds.launcher.devices import check_devices, count_devices
from diablo_ds.ranks.environment import RankVariables, parse_env
from diablo_ds.ranks.exit_codes import EXIT_USER_ERROR
from diablo_ds.ranks.identity import ANY_PORT
from diablo_ds.ranks.terminal import unblocked

ENV_HELP = (
    "Environment variable of the ranks: NAME=VALUE, or NAME for the value here, which is never "
    "shown or written; repeatable."
)
_INTERFACE_HELP = "Network interface for NCCL and Gloo, e.g. ib0."

max_restarts_option = click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Restarts after failures.",
)


@click.command(context_settings=CONTEXT)
@click.option("--hostfile", type=click.Path(path_type=Path), help="Lines `name slots=gpus`.")
@click.option("--nodes", type=click.IntRange(min=1), help="Use the first so many hosts.")
@click.option("--gpus-per-node", type=click.IntRange(min=1), help="Ranks on each host.")
@click.option(
    "--runner",
    type=click.Choice([name for name in RUNNERS if name not in ("local", "no-ssh")]),
    help="How DeepSpeed starts ranks on other hosts.  [default: pdsh with a hostfile]",
)
@click.option("--no-ssh", is_flag=True, help="Start this host's ranks only; run it on each host.")
@click.option("--node-rank", type=int, help="With --no-ssh: this host's line in the hostfile.")
@click.option("--master-addr", default="", help="Where rank 0 listens.  [default: first host]")
@click.option(
    "--master-port",
    type=click.IntRange(0, 65535),
    help="[default: 0, any that is free on the first host]",
)
@click.option("--ssh-port", type=int, help="Port of the hosts' ssh servers.")
@click.option("--interface", default="", help=_INTERFACE_HELP)
@click.option("--env", multiple=True, help=ENV_HELP)
@click.option("--venv", type=click.Path(path_type=Path), help="Virtual environment of the ranks.")
@click.option("--wrap", default="", help="Words before a rank's Python: apptainer exec --nv x.sif.")
@click.option(
    "--log-folder",
    type=click.Path(path_type=Path),
    help="One log a rank, shared by all hosts.  [default: logs in the run folder]",
)
@click.option("--launcher-args", default="", help="Further arguments for pdsh, mpirun or srun.")
@max_restarts_option
@click.option(
    "--min-nodes",
    type=click.IntRange(min=1),
    help="A restart may go on with so many hosts where others are lost.  [default: all]",
)
@click.option("--check", is_flag=True, help="Check the hosts and print a table; start nothing.")
@click.option("--skip-checks", is_flag=True, help="Start without checking the hosts.")
@click.option("--dry-run", is_flag=True, help="Print the command that would run; start nothing.")
@run_options
def launch(
    ds_config: Path | None,
    log_folder: Path | None,
    max_restarts: int,
    min_nodes: int | None,
    check: bool,
    skip_checks: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Train on this machine's GPUs or on the hosts of a hostfile, and survive what breaks.

    All options of `diablo-ds train` go with it. Without a hostfile the ranks are on this machine.
    """
    names = (
        *("hostfile", "nodes", "gpus_per_node", "runner", "no_ssh", "node_rank", "master_addr"),
        *("master_port", "ssh_port", "interface", "env", "venv", "wrap", "launcher_args"),
    )
    with clean_errors(), unblocked("the logs of the ranks have all of theirs"):
        _refuse_several(check=check, skip_checks=skip_checks, dry_run=dry_run)
        cluster = build_cluster(**{name: options.pop(name) for name in names})
        if min_nodes is not None and (cluster.runner == "local" or not max_restarts):
            raise UserError(
                "min_nodes is for restarts on the hosts of a hostfile; got "
                f"min_nodes={min_nodes}, max_restarts={max_restarts}, runner={cluster.runner!r}"
            )
        run = build_run_config(options, cluster.world_size)
        ds_config = ds_config or DEFAULT_DS_CONFIG
        run = with_global_batch(run, ds_config, [cluster.world_size])
        if not run.output and cluster.node_rank is not None and len(cluster.hosts) > 1:
            raise UserError(
                "a run that is started on each host by hand needs output, the same on all; got none"
            )
        sys.exit(
            _launch(
                run,
                ds_config,
                cluster,
                log_folder,
                max_restarts=max_restarts,
                min_nodes=min_nodes or len(cluster.hosts),
                check=check,
                skip_checks=skip_checks,
                dry_run=dry_run,
            )
        )


def _launch(
    run: RunConfig,
    ds_config: Path,
    cluster: Cluster,
    log_folder: Path | None,
    *,
    max_restarts: int,
    min_nodes: int,
    check: bool,
    skip_checks: bool,
    dry_run: bool,
) -> int:
    from diablo_ds.config.words import shell_text
    from diablo_ds.launcher import checks, deepspeed_command, supervisor
    from diablo_ds.training.run_folder import logs_folder

    asked, run = run, with_output(run, reserve=False)
    if dry_run:
        logs = log_folder or logs_folder(Path(run.output))
        folder = supervisor.next_log_folder(logs, cluster)
        words = deepspeed_command.build_command(run, ds_config, cluster, folder)
        click.echo(shell_text(words, deepspeed_command.launcher_env(cluster)))
        if cluster.hidden_env:
            names = ", ".join(cluster.hidden_env)
            click.echo(
                f"Not in the command, and handed over by diablo-ds launch: {names}", err=True
            )
        return 0
    if check or not skip_checks:
        missing = checks.missing_command(cluster)
        if missing:
            raise UserError(missing)
        found = checks.check_hosts(run, ds_config, cluster)
        is_good = not any(host.problems for host in found)
        if check or not is_good:
            click.echo(checks.table(found), err=not check)
        if check or not is_good:
            return 0 if is_good else EXIT_USER_ERROR
    run = with_output(asked, reserve=True)
    logs = log_folder or logs_folder(Path(run.output))
    return supervisor.run_until_done(
        run, ds_config, cluster, logs, max_restarts=max_restarts, min_nodes=min_nodes
    )


def build_cluster(
    *,
    hostfile: Path | None,
    nodes: int | None,
    gpus_per_node: int | None,
    runner: str | None,
    no_ssh: bool,
    node_rank: int | None,
    master_port: int | None,
    env: tuple[str, ...],
    **others: Any,
) -> Cluster:
    """Build the cluster from options, and the hostfile if there is one.

    Raises:
        UserError: if they do not go together, or the hostfile is wrong.
    """
    if no_ssh and runner is not None:
        raise UserError(f"give --no-ssh or --runner, not both; got runner={runner!r}")
    variables = parse_env(env)
    warn_of_secrets(variables)
    given = {**os.environ, **variables.shown, **variables.hidden}
    if hostfile is None:
        _refuse_local(nodes, runner, no_ssh)
        slots = gpus_per_node or local_slots()
        check_devices(given, slots)
        return Cluster(
            hosts=(Host("localhost", slots),),
            node_rank=node_rank,
            master_port=master_port or ANY_PORT,
            env=variables.shown,
            hidden_env=variables.hidden,
            **others,
        )
    hosts = read_hostfile(hostfile)
    if nodes is not None and nodes > len(hosts):
        raise UserError(
            f"nodes must be at most the {len(hosts)} hosts of {hostfile}; got nodes={nodes}"
        )
    chosen = hosts[:nodes]
    if runner in ("openmpi", "mpich") and (nodes or gpus_per_node):
        raise UserError(
            f"runner {runner} takes all of a hostfile; got nodes={nodes}, "
            f"gpus_per_node={gpus_per_node}; change the hostfile instead"
        )
    too_few = [host for host in chosen if host.slots < (gpus_per_node or 1)]
    if too_few:
        raise UserError(
            f"gpus_per_node must be at most a host's slots; got gpus_per_node={gpus_per_node}, "
            f"{too_few[0].name} slots={too_few[0].slots} in {hostfile}"
        )
    if gpus_per_node is not None:
        chosen = tuple(replace(host, slots=gpus_per_node) for host in chosen)
    if not no_ssh and (runner or "pdsh") in SSH_RUNNERS:
        _warn_of_devices(variables)
    if no_ssh and node_rank is not None and 0 <= node_rank < len(chosen):
        check_devices(given, chosen[node_rank].slots)
    return Cluster(
        runner="no-ssh" if no_ssh else runner or "pdsh",
        hosts=chosen,
        hostfile=hostfile,
        num_nodes=nodes,
        num_gpus=gpus_per_node,
        node_rank=node_rank,
        master_port=master_port or ANY_PORT,
        env=variables.shown,
        hidden_env=variables.hidden,
        **others,
    )


def warn_of_secrets(variables: RankVariables) -> None:
    """Say which secrets this process's own command line shows to everybody."""
    for name in variables.written_out:
        click.echo(
            f"Warning: every user of this machine can read {name} in the command line; export it "
            f"and give --env {name}",
            err=True,
        )


def _warn_of_devices(variables: RankVariables) -> None:
    """Say which choice of devices in this shell does not reach ranks over ssh."""
    for name in DEVICE_NAMES:
        if name in os.environ and name not in {**variables.shown, **variables.hidden}:
            click.echo(
                f"Warning: {name}={os.environ[name]} is this shell's alone, each host's ranks see "
                f"what its own login sets; give --env {name} for all hosts",
                err=True,
            )


def _refuse_several(**flags: bool) -> None:
    """Raise UserError where more than one of the flags was given."""
    given = [f"--{name.replace('_', '-')}" for name, is_given in flags.items() if is_given]
    if len(given) > 1:
        raise UserError(f"give one of --check, --skip-checks, --dry-run; got {', '.join(given)}")


def _refuse_local(nodes: int | None, runner: str | None, no_ssh: bool) -> None:
    """Raise UserError where the options ask for several hosts and name none."""
    if (nodes or 1) > 1 or runner is not None or no_ssh:
        asked = f"nodes={nodes}, runner={'no-ssh' if no_ssh else runner}"
        raise UserError(f"a run on several hosts needs --hostfile; got none, with {asked}")
    allocated = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    if allocated not in ("", "1"):
        raise UserError(
            "a run inside a SLURM allocation must name its hosts, or it would use this one alone; "
            f"got no hostfile, SLURM_JOB_NUM_NODES={allocated}; use diablo-ds slurm, or "
            "`scontrol show hostnames` to write a hostfile"
        )


def local_slots() -> int:
    """Return the ranks that this machine takes: its GPUs, or one on a machine without."""
    from diablo_ds.launcher.probe import gpu_names

    given = count_devices(os.environ)
    return max(1, len(gpu_names()) if given is None else given)


def with_global_batch(run: RunConfig, ds_config: Path, world_sizes: Sequence[int]) -> RunConfig:
    """Return the run config with a global batch, so that all starts of the run have the same.

    The ranks choose what else is open. The batch equation is printed where something was chosen.

    Args:
        run: the run config, with its run folder.
        ds_config: DeepSpeed config file.
        world_sizes: the numbers of ranks that the run may get; an open global batch suits all.

    Raises:
        UserError: if a given batch does not divide, or the file cannot be read.
    """
    from diablo_ds.config.batch_resolution import resolve_batch
    from diablo_ds.training.run_folder import recorded_config

    values = read_json(ds_config)
    policy = values if isinstance(values, dict) else {}  # the ranks name what is wrong with it
    recorded = recorded_config(run)
    if not run.global_batch and recorded is not None:
        run = replace(run, global_batch=recorded.global_batch)
    if not run.global_batch:
        common = resolve_batch(run, math.lcm(*world_sizes), policy=policy).config.global_batch
        if len(world_sizes) > 1 and common > MOST_MICRO_BATCH * max(world_sizes):
            raise UserError(
                "global_batch must be given where no moderate one divides over every number of "
                f"ranks; got ranks={', '.join(map(str, world_sizes))}, the least that does is "
                f"{common}"
            )
        run = replace(run, global_batch=common)
    for world_size in world_sizes:
        resolution = resolve_batch(run, world_size, recorded=recorded, policy=policy)
        if resolution.lines:
            click.echo(resolution.config.batch_equation(world_size), err=True)
    return run


def with_output(run: RunConfig, *, reserve: bool, for_later: bool = False) -> RunConfig:
    """Return the run config with a run folder, so that a restart finds it.

    Args:
        run: the run config.
        reserve: whether to create the folder where its name is new, so that no other run gets it.
        for_later: whether the run waits in a queue, and the folder may be in use until then.

    Raises:
        UserError: if the folder that it names holds something else, or is in use.
    """
    from diablo_ds.training.run_folder import choose_run_folder, reserve_run_folder

    choose = reserve_run_folder if reserve else choose_run_folder
    return replace(run, output=str(choose(run, for_later=for_later)))
