"""The options that say where `diablo-ds launch` starts ranks, and the cluster that they give."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import click

from diablo_ds.cli.run_start import warn_of_secrets
from diablo_ds.config.setting import setting
from diablo_ds.errors import UserError
from diablo_ds.launcher.cluster import RUNNERS, SSH_RUNNERS, Cluster, Host, read_hostfile
from diablo_ds.launcher.devices import NAMES as DEVICE_NAMES
from diablo_ds.launcher.devices import check_devices, count_devices
from diablo_ds.launcher.rank_settings import LARGEST_PORT, RankSettings, count_ranks
from diablo_ds.ranks.environment import RankVariables, parse_env


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(RankSettings):
    """Which hosts a run takes, and how its ranks get there.

    Raises:
        UserError: if a value is illegal.
    """

    hostfile: Path | None = setting(None, "File with a line `name slots=ranks` per host.", "hosts")
    nodes: int | None = setting(
        None, "Use only the first n hosts of the hostfile.", "hosts", minimum=1
    )
    gpus_per_node: int | None = setting(
        None, "GPUs of each host, one rank on each.", "hosts", minimum=1
    )
    ranks_per_node: int | None = setting(
        None,
        "Ranks on each host: the same number by the name that suits ranks on CPUs.",
        "hosts",
        minimum=1,
        shown_default="the host's slots or GPUs, or 1",
    )
    runner: str | None = setting(
        None,
        "How DeepSpeed starts ranks on other hosts.",
        "hosts",
        choices=tuple(name for name in RUNNERS if name not in ("local", "no-ssh")),
        shown_default="pdsh with a hostfile",
    )
    no_ssh: bool = setting(
        False, "Start this host's ranks only; run the command on each host.", "hosts"
    )
    node_rank: int | None = setting(
        None, "With --no-ssh: this host's line in the hostfile, from 0.", "hosts"
    )
    ssh_port: int | None = setting(
        None, "Port of the hosts' ssh servers.", "network", minimum=1, maximum=LARGEST_PORT
    )
    venv: Path | None = setting(None, "Virtual environment of the ranks.", "environment")
    launcher_args: str = setting("", "Further arguments for pdsh, mpirun or srun.", "environment")

    def __post_init__(self) -> None:
        super().__post_init__()
        count_ranks(self.gpus_per_node, self.ranks_per_node)

    @property
    def slots(self) -> int | None:
        """Ranks on each host; None where it is not said."""
        return count_ranks(self.gpus_per_node, self.ranks_per_node)

    def slots_text(self) -> str:
        """Return the number of ranks by the name that it was given by, for messages."""
        name = "ranks_per_node" if self.gpus_per_node is None else "gpus_per_node"
        return f"{name}={self.slots}"


def build_cluster(options: ClusterOptions) -> Cluster:
    """Build the cluster from options, and the hostfile if there is one.

    Raises:
        UserError: if they do not go together, or the hostfile is wrong.
    """
    if options.no_ssh and options.runner is not None:
        raise UserError(f"give --no-ssh or --runner, not both; got runner={options.runner!r}")
    variables = parse_env(options.env)
    warn_of_secrets(variables)
    given = {**os.environ, **variables.shown, **variables.hidden}
    cluster = _local(options) if options.hostfile is None else _of_hostfile(options)
    if options.hostfile is None:
        check_devices(given, cluster.hosts[0].slots)
    elif cluster.runner in SSH_RUNNERS:
        _warn_of_devices(variables)
    elif cluster.node_rank is not None:
        check_devices(given, cluster.hosts[cluster.node_rank].slots)
    return replace(cluster, env=variables.shown, hidden_env=variables.hidden)


def _local(options: ClusterOptions) -> Cluster:
    """Return this machine as a cluster; raise UserError where the options ask for other hosts."""
    if (options.nodes or 1) > 1 or options.runner is not None or options.no_ssh:
        runner = "no-ssh" if options.no_ssh else options.runner
        raise UserError(
            "a run on several hosts needs --hostfile; got none, with "
            f"nodes={options.nodes}, runner={runner}"
        )
    allocated = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    if allocated not in ("", "1"):
        raise UserError(
            "a run inside a SLURM allocation must name its hosts, or it would use this one alone; "
            f"got no hostfile, SLURM_JOB_NUM_NODES={allocated}; use diablo-ds slurm, or "
            "`scontrol show hostnames` to write a hostfile"
        )
    return _cluster(options, "local", (Host("localhost", options.slots or local_slots()),))


def _of_hostfile(options: ClusterOptions) -> Cluster:
    """Return the hosts of the hostfile that the options choose; raise UserError where it cannot."""
    hostfile, nodes, slots = options.hostfile, options.nodes, options.slots
    assert hostfile is not None
    hosts = read_hostfile(hostfile)
    if nodes is not None and nodes > len(hosts):
        raise UserError(
            f"nodes must be at most the {len(hosts)} hosts of {hostfile}; got nodes={nodes}"
        )
    chosen = hosts[:nodes]
    if options.runner in ("openmpi", "mpich") and (nodes or slots):
        raise UserError(
            f"runner {options.runner} takes all of a hostfile; got nodes={nodes}, "
            f"{options.slots_text()}; change the hostfile instead"
        )
    too_few = [host for host in chosen if host.slots < (slots or 1)]
    if too_few:
        raise UserError(
            f"a host must have a slot for each of its ranks; got {options.slots_text()}, "
            f"{too_few[0].name} slots={too_few[0].slots} in {hostfile}"
        )
    if slots is not None:
        chosen = tuple(replace(host, slots=slots) for host in chosen)
    return _cluster(options, "no-ssh" if options.no_ssh else options.runner or "pdsh", chosen)


def _cluster(options: ClusterOptions, runner: str, hosts: tuple[Host, ...]) -> Cluster:
    return Cluster(
        runner=runner,
        hosts=hosts,
        hostfile=options.hostfile,
        num_nodes=None if options.hostfile is None else options.nodes,
        num_gpus=None if options.hostfile is None else options.slots,
        node_rank=options.node_rank,
        master_addr=options.master_addr,
        master_port=options.master_port,
        ssh_port=options.ssh_port,
        interface=options.interface,
        venv=options.venv,
        wrap=options.wrap,
        launcher_args=options.launcher_args,
    )


def local_slots() -> int:
    """Return the ranks that this machine takes: its GPUs, or one on a machine without."""
    from diablo_ds.launcher.probe import gpu_names

    given = count_devices(os.environ)
    return max(1, len(gpu_names()) if given is None else given)


def _warn_of_devices(variables: RankVariables) -> None:
    """Say which choice of devices in this shell does not reach ranks over ssh."""
    for name in DEVICE_NAMES:
        if name in os.environ and name not in {**variables.shown, **variables.hidden}:
            click.echo(
                f"Warning: {name}={os.environ[name]} is this shell's alone, each host's ranks see "
                f"what its own login sets; give --env {name} for all hosts",
                err=True,
            )
