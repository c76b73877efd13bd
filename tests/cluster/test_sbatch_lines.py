"""The lines of a batch script, as the real sbatch takes them apart."""

from __future__ import annotations

import os
import socket
import subprocess

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diablo_ds.launcher.quoting import sbatch_line
from tests.cluster.packages import require
from tests.unit.launcher.test_quoting import ON_ONE_LINE

_CONF = """\
ClusterName=diablo
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/none
NodeName=node-a CPUs=1
PartitionName=main Nodes=node-a Default=YES
"""
_FOUND = b'Found in script, argument "'
_LAST = "no-option"
"""At which sbatch gives up, before it looks for a controller."""


@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(values=st.lists(ON_ONE_LINE, min_size=20, max_size=60))
def test_sbatch_finds_the_options_that_were_meant(values, tmp_path):
    require(("sbatch",), ("slurm-client",))
    conf = tmp_path / "slurm.conf"
    conf.write_text(_CONF.format(host=socket.gethostname()))
    lines = [sbatch_line("--comment", value) for value in values]
    script = "\n".join(["#!/bin/bash", *lines, f"#SBATCH {_LAST}", "true", ""])
    done = subprocess.run(
        ["sbatch", "-vvv"],
        input=script.encode(),
        env={**os.environ, "SLURM_CONF": str(conf)},
        capture_output=True,
    )
    told = [line for line in done.stderr.split(b"\n") if _FOUND in line]
    found = [os.fsdecode(line.partition(_FOUND)[2][:-1]) for line in told]
    assert found == [*(f"--comment={value}" for value in values), _LAST]
