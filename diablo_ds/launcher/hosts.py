"""Run something on every host over ssh, at the same time."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from diablo_ds.launcher.cluster import SSH_RUNNERS, Cluster, Host
from diablo_ds.launcher.quoting import line_in_folder, ssh_words

CONNECT_TIMEOUT_S = 10
COMMAND_TIMEOUT_S = 60
_OPTIONS = ("-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}")


class Answer(NamedTuple):
    """What a command on a host gave."""

    exit_code: int
    """255 where ssh itself failed."""
    output: str
    error: str


def reachable_hosts(cluster: Cluster) -> list[Host]:
    """Return the hosts that can be reached by ssh, in order."""
    answers = on_all_hosts(cluster, lambda _: ["true"], cluster.hosts)
    return [host for host, answer in zip(cluster.hosts, answers, strict=True) if answer[0] == 0]


def on_all_hosts(
    cluster: Cluster, command: Callable[[Host], Sequence[str]], hosts: Sequence[Host]
) -> list[Answer]:
    """Run a command in the current folder of every host, and return the answers in order.

    Args:
        cluster: tells how hosts are reached; those of runners without ssh stand for this machine.
        command: the words for a host.
        hosts: the hosts.
    """
    with ThreadPoolExecutor(max_workers=64) as pool:
        return list(pool.map(lambda host: _run(cluster, host, command(host)), hosts))


def _run(cluster: Cluster, host: Host, command: Sequence[str]) -> Answer:
    words = list(command)
    if cluster.runner in SSH_RUNNERS:
        remote = line_in_folder(str(Path.cwd()), command)
        words = ssh_words(host.name, cluster.ssh_port, _OPTIONS, remote)
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer(255, "", f"no answer within {COMMAND_TIMEOUT_S} s")
    except OSError as error:
        return Answer(255, "", str(error))
    return Answer(done.returncode, done.stdout, done.stderr)
