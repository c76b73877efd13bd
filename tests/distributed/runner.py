"""Start real ranks: processes of their own, a file store, one thread each."""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from diablo_ds.ranks.free_port import free_port
from tests.forked import start_method
from tests.waiting import WAIT_S


def run_distributed(
    function: Callable[..., None],
    world_size: int,
    tmp_path: Path,
    *args: Any,
) -> None:
    """Run ``function(rank, *args)`` in one process per rank; report failures in order."""
    folder = tmp_path / f"ranks-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    arguments = (function, world_size, folder, free_port(), args)
    ranks = mp.start_processes(
        _worker, arguments, nprocs=world_size, join=False, start_method=start_method()
    )
    deadline = time.monotonic() + WAIT_S
    try:
        while not ranks.join(timeout=1):
            if time.monotonic() > deadline:
                for process in ranks.processes:
                    process.kill()
                raise TimeoutError(f"{function.__name__} still runs after {WAIT_S} s")
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        # The cause first, then the ranks it took down.
        reports = sorted(folder.glob("failure-*"))
        raise AssertionError("\n".join(r.read_text() for r in reports) or str(error)) from None


def _worker(
    rank: int,
    function: Callable[..., None],
    world_size: int,
    folder: Path,
    port: int,
    args: tuple[Any, ...],
) -> None:
    numbers: dict[str, Any] = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_SIZE": world_size,
    }
    # Nobody listens there. DeepSpeed's op for CPUs names its shared memory by it: ranks of two
    # tests that run at once must not find each other's.
    numbers |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in numbers.items()})
    torch.set_num_threads(1)
    gc.freeze()  # DeepSpeed has all objects looked through at each start of an engine
    try:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        store = f"file://{folder / 'store'}"
        dist.init_process_group(backend, init_method=store, rank=rank, world_size=world_size)
        function(rank, *args)
        dist.barrier()
    except BaseException:
        report = f"rank {rank}\n{traceback.format_exc()}"
        (folder / f"failure-{time.time_ns()}").write_text(report)
        raise
    # Now and then gloo's threads abort an interpreter that is shut down in order.
    sys.stdout.flush()
    os._exit(0)
