"""The master port: chosen by rank 0 for each start, and known to the other ranks."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from diablo_ds.errors import UserError
from diablo_ds.launcher import ports
from diablo_ds.launcher.job import Job
from diablo_ds.ranks.identity import find_identity
from diablo_ds.ranks.records import FAILED_FILE


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
    with (
        pytest.raises(UserError, match="ranks that share a log folder; got MASTER_PORT=0"),
        ports.meeting_folder(None, find_identity({}), {}),
    ):
        pass


def test_the_jobs_of_an_array_are_given_no_port():
    with pytest.raises(UserError, match="jobs of an array must choose their ports"):
        Job(gpus_per_node=1, sweep=("seed=1,2",), master_port=29500)
