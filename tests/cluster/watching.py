"""Watch a run from outside, by its folder, and compare it with another."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from diablo_ds.adapter.storage import load_adapter
from tests.e2e.commands import losses
from tests.waiting import WAIT_S, wait_until

SECRET = "hf_Kx81mDzSentinel"
"""What must not be seen."""
_PLANTED = ("diablo_ds", "deepspeed", "torch", "json", "random", "click", "sitecustomize")


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
                if re.search(rf"[ =]{re.escape(str(folder))}[ /]", text):
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


class Observer:
    """Another user, who looks again and again for the secret while a run is on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: set[str] = set()
        self.reached: set[int] = set()

    def watch(self, condition: Callable[[], object]) -> None:
        def look() -> object:
            self.look()
            return condition()

        wait_until(look, "the run to go on")

    def look(self) -> None:
        secret, folder = SECRET.encode(), str(self.folder).encode()
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            with suppress(OSError):
                command = _read(f"/proc/{name}/cmdline")
                if secret in command:
                    self.seen.add(command.decode())
                is_rank = b"diablo_ds\0train" in command and folder in command
                is_new = is_rank and int(name) not in self.reached
                if is_new and b"HF_TOKEN=" + secret in _read(f"/proc/{name}/environ"):
                    self.reached.add(int(name))

    def files_with_secret(self) -> list[str]:
        found = []
        for path in self.folder.rglob("*"):
            with suppress(OSError):
                if path.is_file() and SECRET.encode() in path.read_bytes():
                    found.append(path.name)
        return found


def _read(path: str) -> bytes:
    """Read a file of a process; hundreds of them are read twenty times a second."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, 1 << 20)
    finally:
        os.close(file)


def hostile_folder(parent: Path) -> Path:
    """Make a working folder in which somebody left files that are named like modules.

    Each of them leaves its name in the file `executed` beside the folder.
    """
    folder = parent / "hostile"
    folder.mkdir()
    for name in _PLANTED:
        code = f"open({str(parent / 'executed')!r}, 'a').write(__name__ + chr(10))\n"
        (folder / f"{name}.py").write_text(code + "raise SystemExit('planted module executed')\n")
    return folder
