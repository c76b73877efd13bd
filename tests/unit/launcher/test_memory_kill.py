"""A rank that the kernel really kills for lack of memory, in a small cgroup of its own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from diablo_ds.ranks.memory_kills import KILLER, SYSTEM, _folder, _own_cgroups
from diablo_ds.ranks.records import describe_failure
from tests.unit.launcher.guarded import GuardedRank

LIMIT_BYTES = 96 << 20


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A cgroup inside the own one, with a limit; removed afterwards."""
    paths = dict(_own_cgroups(SYSTEM))
    is_first = "memory" in paths
    kind, name = ("cgroup", "memory") if is_first else ("cgroup2", "")
    parent = _folder(SYSTEM, kind, name, paths.get(name, "/"))
    assert parent is not None
    folder = parent / f"diablo-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        limit = "memory.limit_in_bytes" if is_first else "memory.max"
        try:
            (folder / limit).write_text(str(LIMIT_BYTES))
        except OSError as error:
            pytest.skip(f"no memory limit can be set here: {error}")
        yield folder
    finally:
        for _ in range(100):  # the kernel lets go of ended processes in its own time
            try:
                folder.rmdir()
                break
            except OSError:
                time.sleep(0.1)


def test_a_rank_that_took_too_much_memory_is_told_from_one_that_was_killed(tmp_path, small_cgroup):
    processes = str(small_cgroup / "cgroup.procs")
    enter = f"import os; open({processes!r}, 'w').write(str(os.getpid()))"
    code = "beat(); kept = [bytearray(b'x' * (4 << 20)) for _ in range(100)]"
    rank = GuardedRank(tmp_path, code, before=enter)
    assert rank.end() == 128 + signal.SIGKILL
    cause = rank.record()["cause"]
    assert cause.startswith("killed by SIGKILL")
    assert KILLER in cause
    text = describe_failure(tmp_path)
    assert KILLER in text
    assert "--micro-batch" in text
