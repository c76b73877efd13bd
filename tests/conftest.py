"""No network, fixed seeds, one thread a process: the machine's cores are for the ranks."""

from __future__ import annotations

import gc
import os
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each started process compiles the package

import pytest
import torch

if not torch.accelerator.is_available():
    os.environ["DS_ACCELERATOR"] = "cpu"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker a file at a time, in the order of the folders, and one all of tests/cluster.

    A file's tests share the trainings in its fixtures; there can be one SLURM. xdist's own
    `--dist=loadgroup` (3.8) has no effect under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class FileScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "cluster" if "/cluster/" in file else file

    config.option.loadscopereorder = False
    return FileScheduling(config, log)


def pytest_collection_finish() -> None:
    """Spare the collector what stays to the end: thousands of tests, and all that they import."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
