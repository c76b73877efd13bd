"""The log folder of each start: numbered, and shared only by the hosts of one start."""

from __future__ import annotations

import itertools
from pathlib import Path

from diablo_ds.files import owned
from diablo_ds.launcher.cluster import Cluster
from diablo_ds.ranks.records import record_file


def next_log_folder(logs: Path, cluster: Cluster) -> Path:
    """Return the first log folder of which no start has made use.

    Where each host is started by hand, that is the first without a record of this host's first
    rank: all hosts come to the same folder that way.
    """
    for number in itertools.count(1):
        folder = logs / f"attempt-{number:03d}"
        if cluster.node_rank is None:
            is_used = folder.exists()
        else:
            first_rank = sum(host.slots for host in cluster.hosts[: cluster.node_rank])
            is_used = record_file(folder, first_rank).exists()
        if not is_used:
            return folder
    raise AssertionError


def make_log_folder(logs: Path, cluster: Cluster) -> Path:
    """Choose the next log folder; one that is new, where this launcher starts all ranks.

    The folder of all logs must exist. Two launchers that shared one of the folders in it would end
    each other's ranks.
    """
    folder = next_log_folder(logs, cluster)
    if cluster.node_rank is not None:  # the launchers of all hosts meet in the same folder
        return folder
    for number in itertools.count(int(folder.name.removeprefix("attempt-"))):
        folder = logs / f"attempt-{number:03d}"
        if owned.new_folder(folder):
            return folder
    raise AssertionError
