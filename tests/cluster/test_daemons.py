"""What the tests do to the machine of whoever runs them: nothing unasked, and on loopback only."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cluster import packages
from tests.cluster.packages import ALLOWED, require

LISTENING = "0A"
LOOPBACK = "7F"
"""First byte of an address, which /proc/net/tcp has last."""


def test_nothing_is_installed_or_started_unasked(monkeypatch):
    monkeypatch.delenv(ALLOWED, raising=False)
    with pytest.raises(pytest.skip.Exception, match=f"{ALLOWED}=1"):
        require(("sh",), ("dash",))
    monkeypatch.setenv(ALLOWED, "1")
    require(("sh",), ("dash",))


def test_the_lock_of_installing_is_where_only_root_writes():
    found = os.stat(packages._LOCK.parent)
    assert found.st_uid == 0
    assert not stat.S_IMODE(found.st_mode) & (stat.S_IWGRP | stat.S_IWOTH)


@pytest.mark.e2e
def test_the_daemons_of_slurm_listen_on_loopback_only(slurm):
    addresses = [a for p in slurm.processes for a in _listening(p.pid)]
    assert addresses
    assert all(address.endswith(LOOPBACK) for address in addresses), addresses


@pytest.mark.e2e
def test_the_ssh_servers_listen_on_loopback_only(hosts):
    addresses = [a for server in hosts.servers.values() for a in _listening(server.pid)]
    assert addresses
    assert all(address.endswith(LOOPBACK) for address in addresses), addresses


def _listening(pid: int) -> list[str]:
    """Return the addresses at which a process listens, as /proc/net/tcp and tcp6 have them."""
    sockets = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            sockets.add(os.readlink(file))
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
    ]
    return [
        words[1].split(":")[0]
        for words in lines
        if words[3] == LISTENING and f"socket:[{words[9]}]" in sockets
    ]
