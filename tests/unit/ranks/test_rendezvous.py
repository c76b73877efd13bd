"""Where ranks of one host meet: no other machine reaches it."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from diablo_ds.ranks import rendezvous
from diablo_ds.ranks.free_port import free_port
from diablo_ds.ranks.joining import Membership, PortInUseError
from tests.waiting import WAIT_S

LIMIT = timedelta(seconds=WAIT_S)


def _listening(port: int) -> list[str]:
    """Return the addresses at which a port of this machine is listened on, as in /proc."""
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A" and int(address.rpartition(":")[2], 16) == port:
                found.append(address.rpartition(":")[0])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ranks_of_one_host_meet_at_a_port_of_the_loopback_interface():
    port = free_port()
    ranks = [Membership(b"", rank, 2) for rank in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        made = [pool.submit(rendezvous._loopback_store, rank, port, LIMIT) for rank in ranks]
        server, client = (store.result() for store in made)
    server.set("a", b"1")
    assert client.get("a") == b"1"
    assert _listening(port) == ["0100007F"]
    with (
        pytest.raises(PortInUseError, match=r"master port must be free; .* MASTER_PORT="),
        rendezvous._reported(),
    ):
        rendezvous._loopback_store(ranks[0], port, LIMIT)


def test_the_address_that_names_shared_memory_is_there_while_the_group_is_made(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node-a")
    with rendezvous._address("unguessable"):
        assert os.environ["MASTER_ADDR"] == "unguessable"
    assert os.environ["MASTER_ADDR"] == "node-a"
