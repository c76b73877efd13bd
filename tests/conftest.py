"""No network, fixed seeds, one thread a process: the machine's cores are for the ranks."""

from __future__ import annotations

import os

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each started process compiles the package

import pytest
import torch

if not torch.accelerator.is_available():
    os.environ["DS_ACCELERATOR"] = "cpu"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep a file's tests on one worker, and all of tests/cluster: there can be one SLURM."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            folder = item.path.parent.name
            group = folder if folder == "cluster" else f"{folder}/{item.path.stem}"
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
