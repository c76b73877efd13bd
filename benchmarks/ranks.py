"""Start the ranks of a measurement, each a process of its own, and collect what they found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from diablo_ds.ranks.device_memory import reset_resident_peak, resident_peak
from diablo_ds.ranks.free_port import free_port

FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Makes freed memory go back to the system, so that peaks are of what is in use; costs time."""


def run_ranks(
    module: str,
    settings: dict[str, Any],
    world_size: int,
    *,
    environment: Mapping[str, str] = MappingProxyType({}),
    timeout_s: float = 1800,
) -> list[dict[str, Any]]:
    """Run ``python -m module`` once per rank, and return what each wrote, by rank.

    Args:
        module: its `rank_main` must be called under ``__main__``.
        settings: JSON values that every rank gets.
        world_size: number of ranks.
        environment: variables to set, such as `FREED_AT_ONCE`.
        timeout_s: seconds after which the measurement is given up.

    Raises:
        RuntimeError: if a rank fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        variables = _variables(world_size, free_port()) | dict(environment)
        ranks = [_start(module, settings, rank, variables, folder) for rank in range(world_size)]
        try:
            codes = [process.wait(timeout_s) for process in ranks]
        finally:
            for process in ranks:
                process.kill()
        if any(codes):
            logs = [Path(folder, f"{rank}.log").read_text()[-6000:] for rank in range(world_size)]
            raise RuntimeError(f"{module} {settings} ended with {codes}:\n" + "\n".join(logs))
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world_size)]


def _variables(world_size: int, port: int) -> dict[str, str]:
    num_threads = max(1, len(os.sched_getaffinity(0)) // world_size)
    variables = os.environ | {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "LOCAL_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(num_threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not torch.accelerator.is_available():
        variables |= {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo"}
    return variables


def _start(
    module: str, settings: dict[str, Any], rank: int, variables: dict[str, str], folder: str
) -> subprocess.Popen[bytes]:
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    with Path(folder, f"{rank}.log").open("wb") as log:
        arguments = [sys.executable, "-m", module, json.dumps(settings), f"{folder}/{rank}.json"]
        return subprocess.Popen(
            arguments, env=variables | own, stdout=log, stderr=log, start_new_session=True
        )


def rank_main(measure: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Run a rank's part: settings from the command line, result to the file named there."""
    settings, result = sys.argv[1:]
    Path(result).write_text(json.dumps(measure(json.loads(settings))))
    sys.stdout.flush()
    os._exit(0)  # gloo now and then aborts while the interpreter shuts down


def reset_peak_memory() -> None:
    """Let the peak be counted from now on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_resident_peak()


def peak_memory() -> int:
    """Return the peak since `reset_peak_memory` in bytes: allocated on a GPU, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resident_peak()
