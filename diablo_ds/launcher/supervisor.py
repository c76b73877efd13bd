"""Runs to the end: starts, restarts after failures, and fewer hosts where some are lost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diablo_ds.config.batch_resolution import resolve_batch
from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.files import owned
from diablo_ds.files.atomic import write_text
from diablo_ds.launcher.attempt import Attempt
from diablo_ds.launcher.cluster import SSH_RUNNERS, Cluster, Host, hostfile_text
from diablo_ds.launcher.hosts import reachable_hosts
from diablo_ds.launcher.launcher_output import say
from diablo_ds.launcher.log_folders import make_log_folder
from diablo_ds.launcher.ports import PORT_TRIES
from diablo_ds.launcher.starting import prepared_start
from diablo_ds.ranks.exit_codes import EXIT_PORT_IN_USE

RESTART_DELAY_S = 2.0


@dataclass(frozen=True)
class RunEnd:
    """How a run ended."""

    exit_code: int
    was_asked: bool = False
    """Whether a signal asked for the end."""


def run_until_done(
    run_config: RunConfig,
    ds_config: Path,
    cluster: Cluster,
    logs: Path,
    *,
    max_restarts: int,
    min_nodes: int,
    same_command: str,
) -> RunEnd:
    """Run to the end, restarting after failures.

    A restart continues from the last checkpoint. Where hosts are lost, it uses the remaining ones,
    if they are at least ``min_nodes``: the global batch stays, accumulation adjusts. Each start has
    a log folder of its own in ``logs``.

    Args:
        run_config: the run config, with its run folder.
        ds_config: DeepSpeed config file.
        cluster: where the run goes.
        logs: folder for the log folders of all starts.
        max_restarts: starts after the first one.
        min_nodes: hosts that a restart needs.
        same_command: a line for a shell that continues the run, for messages.

    Raises:
        UserError: if the run and the cluster do not go together.
    """
    restarts = port_tries = 0
    while True:
        for path, what in ((Path(run_config.output), "run folder"), (logs, "log folder")):
            owned.make_folder(path, what)
        folder = make_log_folder(logs, cluster)
        owned.make_folder(folder, "log folder")
        attempt = Attempt(cluster, folder, same_command)
        with attempt.signals(), prepared_start(run_config, ds_config, cluster, folder) as start:
            code = attempt.run(start)
        if not attempt.is_worth_a_restart(code):
            return RunEnd(code, was_asked=bool(attempt.asked_by))
        if code == EXIT_PORT_IN_USE and port_tries < PORT_TRIES:
            port_tries += 1
            say("The master port was taken meanwhile, or a stranger came there; starting again.")
        elif restarts < max_restarts:
            restarts += 1
            say(f"Restart {restarts} of {max_restarts}, from the last checkpoint.")
        else:
            say(f"After a repair, this continues from the last checkpoint:\n  {same_command}")
            return RunEnd(code)
        time.sleep(RESTART_DELAY_S)
        if cluster.runner in SSH_RUNNERS:
            cluster = without_lost_hosts(run_config, cluster, min_nodes, folder)


def without_lost_hosts(
    run_config: RunConfig, cluster: Cluster, min_nodes: int, folder: Path
) -> Cluster:
    """Return the cluster of the hosts that can be reached, as many as the global batch allows.

    Raises:
        UserError: if they are too few.
    """
    alive = reachable_hosts(cluster)
    lost = [host.name for host in cluster.hosts if host not in alive]
    if not lost:
        return cluster
    hosts = fitting_hosts(run_config, alive)
    if len(hosts) < min_nodes:
        raise UserError(
            f"at least min_nodes={min_nodes} hosts must be left; got {len(hosts)}; lost are "
            f"{', '.join(lost)}"
        )
    hostfile = folder / "hostfile"
    write_text(hostfile, hostfile_text(hosts))
    smaller = replace(cluster, hosts=hosts, hostfile=hostfile, num_nodes=None)
    if cluster.master_addr and cluster.hosts[0] != hosts[0]:
        smaller = replace(smaller, master_addr="")
    fitting = resolve_batch(run_config, smaller.world_size).run_config
    say(
        f"Lost {', '.join(lost)}; continuing with {smaller.describe()}; "
        f"{fitting.batch_equation(smaller.world_size)}"
    )
    return smaller


def fitting_hosts(run_config: RunConfig, hosts: Sequence[Host]) -> tuple[Host, ...]:
    """Return the most hosts, from the first on, over which the global batch divides."""
    for count in range(len(hosts), 0, -1):
        chosen = tuple(hosts[:count])
        with contextlib.suppress(UserError):
            resolve_batch(run_config, sum(host.slots for host in chosen))
            return chosen
    return ()
