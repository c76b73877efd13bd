"""Run the real commands as a user does, in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from diablo_ds.ranks.free_port import free_port
from diablo_ds.ranks.identity import LAUNCHER, PLACE_NAMES, RANK_NAMES
from tests.overriding import with_last_options
from tests.waiting import WAIT_S

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ZERO3 = ROOT / "ds_configs" / "zero3.json"


def environment() -> dict[str, str]:
    """This environment without what a launcher would set, and the tests' PATH first."""
    dropped = (*RANK_NAMES, *PLACE_NAMES, LAUNCHER, "LOCAL_SIZE", "DS_ACCELERATOR")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def diablo_ds(*args: Any, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `diablo-ds` in one process."""
    return _run(["diablo-ds", *with_last_options(args)], check)


def deepspeed(
    *args: Any, num_ranks: int, check: bool = True, port: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `deepspeed launch/train.py` on ranks of this machine."""
    port = free_port() if port is None else port
    launcher = ["deepspeed", f"--num_accelerators={num_ranks}", f"--master_port={port}"]
    result = _run([*launcher, "launch/train.py", *with_last_options(args)], check)
    assert not list(Path("/dev/shm").glob(f"deepspeed*_{port}_*")), "memory is left behind"
    return result


def _run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    if check:
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


def assert_user_error(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Assert a message with these parts, an exit code that is not 0, and no traceback."""
    text = result.stdout + result.stderr
    assert result.returncode != 0, text
    assert "Traceback" not in text, text
    for part in parts:
        assert part in text, text


def losses(folder: Path, name: str = "loss") -> dict[int, float]:
    """Read a run's losses by step."""
    points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {point["step"]: point[name] for point in points if name in point}
