"""What ranks must have in common: found out before they join, and after; all stop with a name."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from diablo_ds.ranks.free_port import free_port
from tests.e2e.commands import environment

pytestmark = pytest.mark.distributed
NUM_RANKS = 3

_RANK = """
import json, os, sys
from datetime import timedelta
import torch.distributed as dist
from diablo_ds.errors import UserError
from diablo_ds.ranks import distributed, rendezvous
from diablo_ds.ranks.joining import StrangerError

rank, ports = int(sys.argv[1]), sys.argv[2:]
distributed.host_name = lambda: f"host{rank}"
messages = []

def told(function):
    try:
        messages.append(function())
    except (UserError, StrangerError) as error:
        messages.append(str(error))

def odd_one_out():
    if rank == 1:
        raise UserError("nvme_path must exist")

def join(secret, **facts):
    os.environ |= {"MASTER_PORT": ports.pop(0), "DIABLO_RUN_KEY": secret}
    rendezvous.join(dist.init_process_group, "gloo", timedelta(seconds=600), facts, "cpu")
    assert "DIABLO_RUN_KEY" not in os.environ

told(lambda: join("a" * 64, device="cuda" if rank == 2 else "cpu"))
told(lambda: join(("b" if rank == 2 else "a") * 64, device="cpu"))
join("a" * 64, device="cpu")
told(lambda: distributed.check_same({"attention": rank and "sdpa"}))
told(lambda: distributed.check_same({"attention": "sdpa"}))
told(lambda: distributed.on_every_rank(odd_one_out))
dist.barrier()
print(json.dumps(messages), flush=True)
os._exit(0)
"""


def test_all_ranks_are_told_what_one_of_them_lacks():
    ports = [free_port() for _ in range(3)]
    numbers = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(NUM_RANKS)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, *map(str, (rank, *ports))],
            env={**environment(), **numbers, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(NUM_RANKS)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    expected = [
        "device must be the same on every host; got cpu on rank 0 (host0) and cuda on rank 2 "
        "(host2)",
        "attention must be the same on every rank; got 0 on rank 0 (host0) and sdpa on rank 1 "
        "(host1)",
        None,
        "nvme_path must exist (on host1, rank 1; not on the others)",
    ]
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    refusals = [messages.pop(1) for messages in found]
    assert found == [expected] * NUM_RANKS
    stranger = "every rank must have the secret .* on ranks {} as seen by rank {};"
    for refusal, (wrong, seen_by) in zip(refusals, ((2, 0), (2, 0), (0, 2)), strict=True):
        assert re.match(stranger.format(wrong, seen_by), refusal)
