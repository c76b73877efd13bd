from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from diablo_ds.errors import UserError
from diablo_ds.files import ownership
from diablo_ds.files.layout import OWNER_FOLDER
from diablo_ds.files.owner_file import Owner, parse, to_bytes
from diablo_ds.files.ownership import claim, refuse_owned
from tests.waiting import wait_until

CLAIMER = """
import sys, time
from pathlib import Path
from diablo_ds.files.ownership import claim

folder, begin = Path(sys.argv[1]), float(sys.argv[2])
while time.time() < begin:
    pass
try:
    owner = claim(folder, "run folder")
except ValueError as error:
    print(error, flush=True)
else:
    print("claimed", flush=True)
    sys.stdin.read()
    owner.release()
"""


def _start(folder: Path, begin: float = 0.0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CLAIMER, str(folder), str(begin)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _owner_file(folder: Path) -> Path:
    return max((folder / OWNER_FOLDER).glob("*.json"))


def _change(folder: Path, **values: object) -> None:
    """Make the owner's file name another owner, in place."""
    path = _owner_file(folder)
    data = json.dumps(json.loads(path.read_text()) | values)
    path.write_text(f"{data:2047}\n")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "DEAD_AFTER_S", 1.0)
    monkeypatch.setattr(ownership, "BEAT_S", 0.05)


def test_of_many_starts_in_one_instant_one_wins(tmp_path):
    for attempt in range(3):
        processes = [_start(tmp_path, time.time() + 1) for _ in range(8)]
        lines = [_line(process) for process in processes]
        assert lines.count("claimed") == 1, lines
        winner = processes[lines.index("claimed")]
        assert sum(f"in use by process {winner.pid} of " in line for line in lines) == 7
        if attempt:
            winner.kill()  # a killed owner does not keep the next one out, nor one that released
        for process in processes:
            process.communicate()
        assert len(list((tmp_path / OWNER_FOLDER).iterdir())) == 1


def test_threads_that_claim_and_release_never_own_together(tmp_path, quick):
    owning = most = claims = 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal owning, most, claims
        mine = 0
        while mine < 4:
            try:
                owner = claim(tmp_path, "folder")
            except ValueError:
                time.sleep(0.001)
                continue
            mine += 1
            with guard:
                owning += 1
                most, claims = max(most, owning), claims + 1
            time.sleep(0.001)
            with guard:
                owning -= 1
            owner.release()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert claims == 24


def test_the_error_names_the_owner_and_the_repair(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    owner = claim(tmp_path, "run folder")
    with pytest.raises(UserError, match="must not be in use") as caught:
        claim(tmp_path, "run folder")
    text = str(caught.value)
    for part in (
        f"process {os.getpid()} of ",
        "SLURM job 4711, since 20",
        str(tmp_path),
        "stop it",
    ):
        assert part in text
    with pytest.raises(UserError, match="must not be in use"):
        refuse_owned(tmp_path, "run folder")
    owner.release()
    refuse_owned(tmp_path, "run folder")
    claim(tmp_path, "run folder").release()


def test_a_reused_process_id_is_not_taken_for_the_owner(tmp_path):
    claim(tmp_path, "folder").release()
    mine = json.loads(_owner_file(tmp_path).read_text())
    _change(tmp_path, released=False, started=mine["started"] - 1)
    refuse_owned(tmp_path, "folder")
    claim(tmp_path, "folder").release()


def test_a_zombie_is_no_owner(tmp_path):
    process = _start(tmp_path)
    assert _line(process) == "claimed"
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    claim(tmp_path, "folder").release()
    process.communicate()


def test_an_owner_elsewhere_is_judged_by_its_heartbeat(tmp_path, quick):
    owner = claim(tmp_path, "folder")
    owner._owner = ownership.replace(owner._owner, machine="another", host="node17")
    owner._write(owner._owner)
    with pytest.raises(UserError, match="on node17"):
        claim(tmp_path, "folder")
    owner._ended.set()  # as if the machine had lost its power
    owner._thread.join()
    begin = time.monotonic()
    claim(tmp_path, "folder").release()
    assert time.monotonic() - begin >= ownership.DEAD_AFTER_S


def test_an_owner_elsewhere_that_gave_it_back_keeps_nobody_waiting(tmp_path):
    claim(tmp_path, "folder").release()
    _change(tmp_path, machine="another")
    begin = time.monotonic()
    claim(tmp_path, "folder").release()
    assert time.monotonic() - begin < ownership.DEAD_AFTER_S


@pytest.mark.parametrize("text", ["", "garbage", "[]", '{"pid": 1}', "[" * 3000])
def test_a_file_that_names_nobody_keeps_nobody_out_for_ever(text, tmp_path, quick):
    claim(tmp_path, "folder").release()
    _owner_file(tmp_path).write_text(text)
    claim(tmp_path, "folder").release()


def test_an_owner_with_half_a_surrogate_pair_is_nobody():
    owner = Owner("m", "h", "u", 1, 2, "a", "b")
    assert parse(to_bytes(owner)) == owner
    assert parse(to_bytes(replace(owner, user="\ud800"))) is None


def test_what_a_stranger_placed_is_refused_and_does_not_hang(tmp_path):
    (tmp_path / OWNER_FOLDER).mkdir()
    os.mkfifo(tmp_path / OWNER_FOLDER / "000000001.json")
    with pytest.raises(UserError, match="must be a regular file"):
        claim(tmp_path, "folder")
    (tmp_path / OWNER_FOLDER / "000000001.json").unlink()
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / OWNER_FOLDER / "000000001.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        claim(tmp_path, "folder")
    assert (tmp_path / "elsewhere").read_text() == "precious"
    other = tmp_path / "other"
    other.mkdir()
    (other / OWNER_FOLDER).symlink_to(tmp_path)
    with pytest.raises(UserError, match="must be a folder, and no link"):
        claim(other, "folder")


def test_only_the_owner_can_read_or_write_the_file(tmp_path):
    owner = claim(tmp_path, "folder")
    assert stat.S_IMODE(_owner_file(tmp_path).stat().st_mode) == 0o600
    owner.release()


def test_the_owner_notices_that_the_file_is_gone_or_another_ones(tmp_path, quick):
    owner = claim(tmp_path, "run folder")
    owner.check()
    _owner_file(tmp_path).unlink()
    with pytest.raises(UserError, match=r"must stay this process's.*file is gone"):
        owner.check()
    successor = claim(tmp_path, "run folder")
    with pytest.raises(UserError, match="must stay this process's"):
        owner.check()
    owner.release()
    successor.check()  # the other's heartbeats and release went elsewhere
    successor.release()

    owner = claim(tmp_path, "run folder")
    path = _owner_file(tmp_path)
    taken = path.with_name("000000099.json")
    taken.write_text(path.read_text())
    wait_until(lambda: owner.is_lost, "its own thread to see it too")
    with pytest.raises(UserError, match="taken over by process"):
        owner.check()
    owner.release()


def test_without_hard_links_it_works_too(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    owner = claim(tmp_path, "folder")
    owner.check()
    with pytest.raises(UserError, match="must not be in use"):
        claim(tmp_path, "folder")
    owner.release()
    claim(tmp_path, "folder").release()
