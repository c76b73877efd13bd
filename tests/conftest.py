"""No network, fixed seeds, one thread a process: the machine's cores are for the ranks."""

from __future__ import annotations

import os

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import pytest
import torch

if not torch.accelerator.is_available():
    os.environ["DS_ACCELERATOR"] = "cpu"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
