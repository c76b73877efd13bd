"""The master port: chosen by rank 0 for each start, and known to the other ranks."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from diablo_ds.errors import UserError
from diablo_ds.launcher import ports
from diablo_ds.launcher.job import Job
from diablo_ds.ranks.environment import RUN_KEY, STORE_FILE
from diablo_ds.ranks.identity import Identity
from diablo_ds.ranks.records import FAILED_FILE
from tests.e2e.commands import environment


def test_all_ranks_of_a_start_come_to_the_same_free_port(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(ports.agree_on_port, tmp_path, rank) for rank in (1, 2, 3)]
        port = ports.agree_on_port(tmp_path, 0)
        assert {other.result() for other in others} == {port}
    with socket.socket() as listener:
        listener.bind(("", port))


def test_a_rank_does_not_wait_for_a_port_of_a_run_that_has_failed(tmp_path):
    (tmp_path / FAILED_FILE).touch()
    with pytest.raises(OSError, match="rank 0 must choose the master port; the run ended before"):
        ports.agree_on_port(tmp_path, 1)


def test_any_port_needs_a_folder_in_common():
    several = Identity(launcher="x", rank=1, world_size=4, local_size=2)
    with (
        pytest.raises(UserError, match="ranks that share a log folder; got MASTER_PORT=0"),
        contextlib.ExitStack() as resources,
    ):
        ports.meeting_variables(None, several, {}, resources)


_LAUNCHER = """
import subprocess, sys
ranks = [
    subprocess.Popen([sys.executable, "-c", sys.argv[1], str(rank)], stdout=subprocess.PIPE)
    for rank in range(3)
]
for rank in ranks:
    print(rank.communicate()[0].decode(), end="")
"""
_RANK = """
import contextlib, json, os, sys
from pathlib import Path
from diablo_ds.launcher.ports import meeting_variables
from diablo_ds.ranks.identity import Identity
rank = Identity(launcher="x", rank=int(sys.argv[1]), world_size=3, local_size=3, port=29500)
with contextlib.ExitStack() as resources:
    found = meeting_variables(None, rank, {}, resources)
    folder = Path(found["DIABLO_STORE_FILE"]).parent
    modes = {path.stat().st_mode & 0o777 for path in (folder, folder / "key")}
    print(json.dumps([found, sorted(modes), sys.modules.get("torch") is None]))
"""


def test_ranks_that_plain_torchrun_starts_here_have_a_secret_and_a_private_folder(tmp_path):
    launcher = tmp_path / "torchrun"
    launcher.write_text(_LAUNCHER)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, launcher, _RANK],
        env={**environment(), "TMPDIR": str(temporary), "XDG_RUNTIME_DIR": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    first, *others = map(json.loads, done.stdout.splitlines())
    assert others == [first, first]
    found, modes, is_light = first
    assert found.keys() == {RUN_KEY, STORE_FILE}  # the port that was given stays
    assert len(bytes.fromhex(found[RUN_KEY])) == 32
    assert modes == [0o600, 0o700]
    assert is_light
    assert list(temporary.iterdir()) == []


def test_ranks_of_several_hosts_have_a_secret_by_their_log_folder(tmp_path):
    several = Identity(launcher="x", rank=1, world_size=4, local_size=2, port=29500)
    with contextlib.ExitStack() as resources:
        first, second = (
            ports.meeting_variables(tmp_path, several, {}, resources) for _ in range(2)
        )
        assert first == second
        assert first.keys() == {RUN_KEY}
        assert ports.meeting_variables(tmp_path, several, first, resources) == {}


def test_the_jobs_of_an_array_are_given_no_port():
    with pytest.raises(UserError, match="jobs of an array must choose their ports"):
        Job(gpus_per_node=1, sweep=("seed=1,2",), master_port=29500)
