from __future__ import annotations

import subprocess
import sys

import pytest

from diablo_ds.launcher.rank_start import _given_command
from diablo_ds.ranks.records import read_records
from tests.e2e.commands import environment


def _start(folder, lines=""):
    code = f"{lines}\nfrom diablo_ds.launcher import rank_start\nrank_start.main()"
    return subprocess.run(
        [sys.executable, "-c", code, "--log-folder", str(folder), "--env", "A=1"],
        env={**environment(), "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "3"}
        | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_rank_that_cannot_be_started_says_so_without_a_traceback(tmp_path):
    done = _start(tmp_path / "logs")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: RANK and LOCAL_RANK must be below WORLD_SIZE")


@pytest.mark.parametrize(
    ("error", "code", "has_traceback"),
    [
        ("UserError", 2, False),
        ("OSError", 1, False),
        ("ValueError", 1, True),
        ("KeyError", 1, True),
    ],
)
def test_a_defect_of_the_start_keeps_its_traceback_and_is_recorded(
    error, code, has_traceback, tmp_path
):
    lines = f"""
import diablo_ds.launcher.rank_start as rank_start
from diablo_ds.errors import UserError
from diablo_ds.ranks.identity import Identity
def fail(variables): raise {error}("wrong")
rank_start.rank_environment = fail
rank_start.find_identity = lambda environment: Identity(launcher="x", world_size=2)
"""
    done = _start(tmp_path / "logs", lines)
    assert done.returncode == code
    assert ("Traceback" in done.stderr) == has_traceback
    (record,) = read_records(tmp_path / "logs")
    assert (record.exit_code, record.has_failed) == (code, True)
    assert "wrong" in (tmp_path / "logs" / "rank-00000.log").read_text()


def test_the_command_that_started_the_ranks_is_told_without_secrets(monkeypatch):
    words = ["launch/train.py", "--local_rank=1", "--env", "HF_TOKEN=hf_secret", "--seed", "3"]
    monkeypatch.setattr(sys, "argv", words)
    found = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "CROSS_SIZE": "1"}
    found |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    shown = "launch/train.py --env 'HF_TOKEN=***' --seed 3"
    assert _given_command(found) == f"deepspeed {shown}"
    assert _given_command({}) == f"python {shown}"
