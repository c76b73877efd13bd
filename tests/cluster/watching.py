"""Watch a run from outside, by its folder, and compare it with another."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path

import torch

from diablo_ds.adapter import load_adapter
from tests.e2e.commands import losses
from tests.waiting import WAIT_S


def steps_taken(folder: Path) -> int:
    """Return the last training step of a run, 0 before the first."""
    with suppress(OSError, json.JSONDecodeError):
        return max(losses(folder), default=0)
    return 0


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of living processes that name a run folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            with suppress(OSError):
                text = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if f" {folder} " in text or f" {folder}/" in text:
                    found.append(text)
    return found


def assert_same_run(folder: Path, other: Path) -> None:
    """Assert that two runs have the same losses and deltas, bit for bit."""
    assert losses(folder) == losses(other)
    assert losses(folder, "heldout_loss") == losses(other, "heldout_loss")
    deltas, others = (load_adapter(run / "adapter")[0] for run in (folder, other))
    assert deltas.keys() == others.keys()
    for name, delta in deltas.items():
        assert torch.equal(delta, others[name]), name


def output_of(process: subprocess.Popen[str]) -> str:
    """Wait for a process and return what it printed."""
    output, _ = process.communicate(timeout=WAIT_S)
    return output
