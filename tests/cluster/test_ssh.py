"""`diablo-ds launch` on two hosts that are reached by ssh and pdsh."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from diablo_ds.ranks.free_port import free_port
from tests.cluster.ssh import SshHosts
from tests.cluster.watching import output_of, processes_of, steps_taken
from tests.e2e.commands import ROOT
from tests.overriding import with_last_options
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.distributed]


CPU_KIND = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")


def launch(
    hosts: SshHosts, folder: Path, *words: object, cwd: Path = ROOT
) -> subprocess.Popen[str]:
    where = (
        f"--hostfile {hosts.hostfile()} --master-addr 127.0.0.2 --master-port {free_port()} "
        f"--interface lo --env DS_ACCELERATOR=cpu --env OMP_NUM_THREADS=1 --output {folder}"
    )
    # What makes this machine's CPU look like another kind, where bits are compared.
    kind = [f"--env {name}={os.environ[name]}" for name in CPU_KIND if name in os.environ]
    return subprocess.Popen(
        ["diablo-ds", *with_last_options(["launch", *" ".join([where, *kind]).split(), *words])],
        cwd=cwd,
        env=hosts.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_hosts_are_checked_before_a_run(hosts, options, tmp_path):
    folder = tmp_path / "run"
    checked = launch(hosts, folder, "--check", *options)
    table = output_of(checked)
    assert checked.returncode == 0, table
    assert "node-b" in table
    assert not folder.exists()


def test_a_host_that_cannot_be_reached_is_named_before_anything_starts(hosts, options, tmp_path):
    hosts.stop_host("node-b")
    run = launch(hosts, tmp_path / "run", *options)
    output = output_of(run)
    assert run.returncode != 0
    assert "node-b: could not be reached by ssh" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_without_a_host_that_disappears(hosts, options, tmp_path):
    folder = tmp_path / "run"
    run = launch(hosts, folder, "--max-restarts", 1, "--min-nodes", 1, *options)
    wait_until(lambda: steps_taken(folder) >= 12, "12 steps")
    hosts.stop_host("node-b")
    output = output_of(run)
    assert run.returncode == 0, output
    assert "Lost node-b; continuing with 1 ranks on node-a x 1" in output
    assert "global batch 8 = micro batch 2 x accumulation 4 x world size 1" in output
    assert re.search("Resuming after step [123]0 ", output)
    assert steps_taken(folder) == 40
    wait_until(lambda: not processes_of(folder), "all processes to end")
