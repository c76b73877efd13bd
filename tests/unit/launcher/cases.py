"""A run, hosts and ways to start it, for tests of command lines and batch scripts."""

from __future__ import annotations

from pathlib import Path

from diablo_ds.cli.run_options import DEFAULT_DS_CONFIG
from diablo_ds.config.run import RunConfig
from diablo_ds.launcher.cluster import Cluster, Host
from diablo_ds.launcher.deepspeed_command import build_command
from diablo_ds.launcher.job import Job

RUN = RunConfig(
    output="runs/x",
    data=("a b.jsonl",),
    targets=("re:.*(q|v)_proj$", "model.layers.*.mlp.up_proj"),
    learning_rate=3e-4,
    packing=True,
    recompute=False,
    global_batch=96,
)
LOGS = Path("runs/x/logs/attempt-001")
HOSTS = (Host("node-a", 4), Host("node-b", 4))


def make_cluster(runner: str = "pdsh", **changes) -> Cluster:
    return Cluster(runner=runner, hosts=HOSTS, hostfile=Path("hosts"), **changes)


def command(to: Cluster, run: RunConfig = RUN) -> list[str]:
    return build_command(run, DEFAULT_DS_CONFIG, to, LOGS)


def deepspeed_args(words: list[str]):
    from deepspeed.launcher.runner import parse_args

    assert words[0] == "deepspeed"
    return parse_args(words[1:])


def make_job(**changes) -> Job:
    return Job(**{"gpus_per_node": 1, **changes})
