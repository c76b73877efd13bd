from __future__ import annotations

import os

import pytest

from diablo_ds.ranks.cores import num_cores


@pytest.mark.parametrize(
    ("given", "tasks", "expected"),
    [
        (None, None, 8),
        ("3", "1", 3),
        ("3", "1(x2)", 3),
        ("64", "1", 8),  # more than the kernel leaves it
        ("0", "1", 1),
        ("3", None, 8),  # in a batch script, outside any step
        ("3", "4", 8),  # a rank for each task: the CPUs of one are not the host's
        ("3", "1,2", 8),
        ("three", "1", 8),
    ],
)
def test_a_hosts_ranks_share_the_cpus_that_slurm_gave_its_only_task(
    given, tasks, expected, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for name, value in {"CPUS_PER_TASK": given, "STEP_TASKS_PER_NODE": tasks}.items():
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
        if value is not None:
            monkeypatch.setenv(f"SLURM_{name}", value)
    assert num_cores() == expected
