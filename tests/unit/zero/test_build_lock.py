"""Locks that a killed process leaves behind are removed; those in use are not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest

from diablo_ds.errors import UserError
from diablo_ds.zero import build_lock
from diablo_ds.zero.build_lock import (
    StaleLocks,
    check_extensions,
    prefer_own_programs,
    removing_stale_locks,
)

# What PyTorch's FileBaton does, then loads an op for a long time.
HOLD = """
import sys, time
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("held", flush=True)
time.sleep(600)
"""


def _make_old(lock):
    past = time.time() - 1000
    os.utime(lock, (past, past))


@pytest.fixture
def held(tmp_path):
    """A lock, and the process that holds it."""
    lock = tmp_path / "py311_cpu" / "some_op" / "lock"
    lock.parent.mkdir(parents=True)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    _make_old(lock)
    yield lock, process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_lock_is_stale_once_its_process_was_killed(held, tmp_path):
    lock, process = held
    assert StaleLocks(tmp_path).find() == []
    process.kill()
    process.wait()
    assert StaleLocks(tmp_path).find() == [lock]


def test_a_young_lock_may_be_another_hosts(tmp_path):
    lock = tmp_path / "py311_cpu" / "op" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert StaleLocks(tmp_path).find() == []


def test_who_waits_for_a_killed_process_goes_on(held, tmp_path, monkeypatch):
    from torch.utils.file_baton import FileBaton

    monkeypatch.setattr(build_lock, "_POLL_S", 0.05)
    lock, process = held
    with removing_stale_locks(tmp_path):
        process.kill()
        process.wait()
        FileBaton(str(lock), 0.05).wait()
    assert not lock.exists()


@pytest.fixture
def shared(monkeypatch):
    """A file system that other hosts may write to."""
    monkeypatch.setattr(build_lock, "_is_local", lambda _: False)
    monkeypatch.setattr(build_lock, "SHARED_WAIT_S", 0.5)


@pytest.mark.parametrize("stamp", [1000.0, 4e9])  # clocks differ
def test_an_old_lock_of_another_host_is_left_as_long_as_it_is_touched(stamp, shared, tmp_path):
    lock = tmp_path / "py311_cpu" / "op" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    locks = StaleLocks(tmp_path)
    for beat in range(8):
        os.utime(lock, (stamp + beat, stamp + beat))
        assert locks.find() == []
        time.sleep(0.1)
    time.sleep(0.6)
    assert locks.find() == [lock]


def test_a_living_owner_s_lock_is_touched_for_other_hosts(held, shared, tmp_path):
    lock, _ = held
    old = lock.stat().st_mtime_ns
    assert StaleLocks(tmp_path).find() == []
    assert lock.stat().st_mtime_ns > old


def test_a_folder_that_cannot_be_made_names_what_helps(tmp_path):
    (tmp_path / "home").touch()
    with pytest.raises(UserError, match=r"must be writable; .* the variable TORCH_EXTENSIONS_DIR"):
        check_extensions(tmp_path / "home" / ".cache" / "torch_extensions")


def test_ops_are_compiled_by_the_environments_own_ninja(monkeypatch, tmp_path):
    for name in ("host", "own"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ninja").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "own" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "host"))
    for _ in range(2):
        prefer_own_programs()
        assert shutil.which("ninja") == str(tmp_path / "own" / "ninja")
    assert os.environ["PATH"].split(os.pathsep) == [str(tmp_path / n) for n in ("own", "host")]
