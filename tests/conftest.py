"""No network, fixed seeds, one thread a process: the machine's cores are for the ranks."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each started process compiles the package

import pytest
import torch

from tests.scheduling import pytest_xdist_make_scheduler

__all__ = ["pytest_xdist_make_scheduler"]  # pytest finds the hook here

if not torch.accelerator.is_available():
    os.environ["DS_ACCELERATOR"] = "cpu"


def pytest_collection_finish() -> None:
    """Spare the collector what stays to the end: thousands of tests, and all that they import."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _process() -> Iterator[None]:
    """Restore the umask, and where Python looks for modules: commands set both for themselves."""
    before, mask = os.environ.get("PYTHONSAFEPATH"), os.umask(0)
    os.umask(mask)
    yield
    os.umask(mask)
    os.environ.pop("PYTHONSAFEPATH", None)
    if before is not None:
        os.environ["PYTHONSAFEPATH"] = before
