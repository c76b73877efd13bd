"""A disk that is full when rank 0 reports ends all ranks with the message."""

from __future__ import annotations

import shutil

import pytest

from tests import forked
from tests.e2e.commands import assert_user_error

pytestmark = pytest.mark.e2e
PAGE = 4096


def test_a_disk_full_of_reports_ends_all_ranks(options, small_disk):
    folder = small_disk / "run"
    folder.mkdir()
    free = shutil.disk_usage(small_disk).free
    # Room for what is written at the start and a few steps, not for those of all 1000.
    (small_disk / "ballast").write_bytes(bytes(free - 12 * PAGE))
    never = ["--save-every", "1000", "--eval-every", "1000", "--max-steps", "1000"]
    result = forked.ranks(*options, *never, "--output", folder, num_ranks=2, check=False)
    assert_user_error(result, "No space left on device")
    steps = (folder / "metrics.jsonl").read_text().count('"loss"')
    assert 0 < steps < 999
