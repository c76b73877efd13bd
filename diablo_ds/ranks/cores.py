"""How many cores the ranks of this host may use."""

from __future__ import annotations

import os
import re

_ONE_TASK = re.compile(r"1(\(x\d+\))?")
"""Tasks of each node of a step of SLURM, where each has one."""


def num_cores() -> int:
    """Return the cores that the kernel leaves this process, or the fewer that SLURM gave it.

    Not every SLURM binds its tasks to the CPUs that they were given. Where a node has several
    tasks, the CPUs of one are not those of the host's ranks.
    """
    available = len(os.sched_getaffinity(0))
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    if not given.isdecimal() or not _ONE_TASK.fullmatch(tasks):
        return available
    return max(1, min(available, int(given)))
