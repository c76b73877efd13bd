"""The short form of `benchmarks/faults.py`: one fault of each kind that a user meets most."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.breakable_run import BreakableRun
from benchmarks.faults import soak
from tests.waiting import WAIT_S

pytestmark = [pytest.mark.e2e, pytest.mark.distributed]
# Where a bit is flipped a rank is killed, too.
KINDS = ("stop a rank", "terminate the launcher", "flip a bit of a checkpoint")


@contextmanager
def _small_disk(folder: Path) -> Iterator[bool]:
    """Make the folder a small file system, where that is allowed; yield whether it is."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(folder)]
    is_mounted = os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", str(folder)], check=True)


def test_a_run_survives_faults_and_ends_as_if_nothing_had_been(tmp_path):
    with _small_disk(tmp_path) as is_small:
        kinds = (*KINDS, "fill the disk") if is_small else KINDS
        outcomes, problems = soak(BreakableRun(tmp_path, num_steps=27, all_gone_s=WAIT_S), kinds)
    assert [outcome for outcome in outcomes if outcome.problems] == []
    assert problems == []
