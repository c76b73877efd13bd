from __future__ import annotations

import subprocess
import sys

import pytest

from diablo_ds.ranks.noise import NOISE, is_noise


@pytest.mark.parametrize("part", NOISE)
def test_a_line_with_one_of_the_parts_is_noise(part):
    assert is_noise(f"[2026-11-26 10:00:00] {part} and more")


@pytest.mark.parametrize("line", ["", "step 1/2  loss 2.0", "[WARNING] [launch.py:9] rank 3 ended"])
def test_a_line_of_substance_is_none(line):
    assert not is_noise(line)


def test_as_a_filter_it_passes_on_all_other_bytes():
    shown = b"step 1\n\xff no text\n"
    done = subprocess.run(
        [sys.executable, "-m", "diablo_ds.ranks.noise"],
        input=b"[INFO] [runner.py:1] cmd\n" + shown + b"Unable to find hostfile\n",
        capture_output=True,
        check=True,
    )
    assert done.stdout == shown
