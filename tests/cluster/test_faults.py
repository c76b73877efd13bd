"""The short form of `benchmarks/faults.py`: one fault of each kind that a user meets most."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.faults import Bench, soak

pytestmark = [pytest.mark.e2e, pytest.mark.distributed]
KINDS = (
    "kill a rank",
    "stop a rank",
    "kill a guard",
    "terminate deepspeed",
    "terminate the launcher",
    "flip a bit of a checkpoint",
)


def _assert_survived(folder: Path, kinds: tuple[str, ...]) -> None:
    outcomes, problems = soak(Bench(folder, num_steps=60), kinds)
    assert [outcome for outcome in outcomes if outcome.problems] == []
    assert problems == []


def test_a_run_survives_faults_and_ends_as_if_nothing_had_been(tmp_path):
    _assert_survived(tmp_path, KINDS)


@pytest.mark.skipif(os.geteuid() != 0, reason="making a small file system needs root")
def test_a_run_survives_a_full_disk(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        _assert_survived(tmp_path, ("fill the disk",))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
