"""What ranks must have in common: found out before they join, and after; all stop with a name."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from diablo_ds.ranks.free_port import free_port
from tests.e2e.commands import environment

pytestmark = pytest.mark.distributed
NUM_RANKS = 3

_RANK = """
import json, os, sys
import torch.distributed as dist
from diablo_ds.errors import UserError
from diablo_ds.ranks import distributed, rendezvous

rank, ports = int(sys.argv[1]), sys.argv[2:]
distributed.host_name = lambda: f"host{rank}"
messages = []

def told(function):
    try:
        messages.append(function())
    except UserError as error:
        messages.append(str(error))

def odd_one_out():
    if rank == 1:
        raise UserError("nvme_path must exist")

os.environ["MASTER_PORT"] = ports[0]
told(lambda: rendezvous.check_same_before_joining({"device": "cuda" if rank == 2 else "cpu"}))
os.environ["MASTER_PORT"] = ports[1]
store = rendezvous.check_same_before_joining({"device": "cpu"})
dist.init_process_group("gloo")
del store
told(lambda: distributed.check_same({"attention": rank and "sdpa"}))
told(lambda: distributed.check_same({"attention": "sdpa"}))
told(lambda: distributed.on_every_rank(odd_one_out))
dist.barrier()
print(json.dumps(messages), flush=True)
os._exit(0)
"""


def test_all_ranks_are_told_what_one_of_them_lacks():
    ports = (free_port(), free_port())
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
    assert [json.loads(output.splitlines()[-1]) for output in outputs] == [expected] * NUM_RANKS
