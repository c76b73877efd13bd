from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm import SlurmCluster
from tests.cluster.ssh import SshHosts
from tests.e2e.commands import ZERO3
from tests.forked import ranks
from tests.tiny import save_model, write_pairs


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshHosts]:
    with SshHosts(tmp_path_factory.mktemp("ssh")) as hosts:
        yield hosts


@pytest.fixture(scope="session")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run long enough to be broken: 40 steps of some tenth of a second."""
    folder = tmp_path_factory.mktemp("run")
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
    model = save_model(folder / "model", **sizes)
    data = write_pairs(folder / "pairs.jsonl", 60)
    text = (
        f"--model {model} --data {data} --num-blocks 4 --micro-batch 2 --global-batch 8 "
        "--max-steps 40 --save-every 10 --eval-every 10 --learning-rate 0.002 --dropout 0.1 "
        "--precision fp32 --hang-timeout 120"
    )
    return text.split()


@pytest.fixture(scope="session")
def undisturbed(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on two ranks, left alone."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    # As in the runs that are compared with it.
    on_cpus = {"DS_ACCELERATOR": "cpu"}
    ranks("--ds_config", ZERO3, *options, "--output", folder, variables=on_cpus)
    return folder
