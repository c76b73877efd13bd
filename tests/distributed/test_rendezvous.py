"""A process alone, and the ranks of one host, open no port to others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.commands import environment

pytestmark = pytest.mark.distributed


_ALONE = """
import os, sys
from pathlib import Path
from diablo_ds.zero.joining import init_process_group
init_process_group()
import torch
torch.distributed.new_group([0])
inodes = set()
for link in Path("/proc/self/fd").iterdir():
    try:
        target = os.readlink(link)
    except OSError:
        continue
    if target.startswith("socket:["):
        inodes.add(target[8:-1])
for name in ("tcp", "tcp6"):
    for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] in inodes and fields[3] == "0A":
            print("LISTENS", fields[1])
print("DONE")
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("launcher", [{}, {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}])
def test_a_process_alone_listens_on_no_outer_address(launcher, tmp_path):
    if launcher:
        launcher = {**launcher, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}
    script = tmp_path / "alone.py"
    script.write_text(_ALONE)
    done = subprocess.run(
        [sys.executable, script],
        env={**environment(), **launcher},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert "DONE" in done.stdout, done.stderr
    loopback = ("0100007F:", "00000000000000000000000001000000:")
    listening = [line.split()[1] for line in done.stdout.splitlines() if "LISTENS" in line]
    assert [address for address in listening if not address.startswith(loopback)] == []
