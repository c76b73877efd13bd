from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import save_model, write_pairs


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl", 40)


@pytest.fixture
def options(model: Path, data: Path) -> list[str]:
    """A run of 8 steps that takes seconds; dropout makes random state matter."""
    text = (
        f"--model {model} --data {data} --num-blocks 4 --micro-batch 2 --global-batch 4 "
        "--max-steps 8 --save-every 4 --eval-every 4 --learning-rate 0.01 --dropout 0.1 "
        "--precision fp32"
    )
    return text.split()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
