from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from diablo_ds.cli.run_options import DEFAULT_DS_CONFIG
from diablo_ds.config.words import train_words
from diablo_ds.errors import UserError
from diablo_ds.launcher.deepspeed_command import build_command
from tests.unit.launcher.cases import LOGS, RUN, command, deepspeed_args, make_cluster


@pytest.mark.parametrize("runner", ["pdsh", "openmpi", "mpich", "slurm"])
def test_deepspeed_understands_the_command(runner):
    args = deepspeed_args(command(make_cluster(runner, master_port=12345, interface="ib0")))
    assert (args.hostfile, args.launcher, args.master_addr) == ("hosts", runner, "node-a")
    assert args.master_port == 12345
    assert args.user_script == "launch/train.py"
    assert "NCCL_SOCKET_IFNAME=ib0" in args.user_args


def test_a_rank_gets_the_python_of_its_venv_or_container():
    cluster = make_cluster(venv=Path("/v"), wrap="apptainer exec x.sif")
    words = command(cluster)
    assert words[words.index("--venv") + 1] == "/v"
    assert words[words.index("--wrap") + 1] == "apptainer exec x.sif"
    assert cluster.python() == ["apptainer", "exec", "x.sif", "/v/bin/python", "-P"]
    assert make_cluster(wrap="c run").python() == [
        "c",
        "run",
        "python3",
        "-P",
    ]  # the container's own
    assert make_cluster().python() == [sys.executable, "-P"]


def test_every_host_starts_its_own_ranks_without_ssh():
    args = deepspeed_args(command(make_cluster("no-ssh", node_rank=1)))
    assert args.no_ssh
    assert args.node_rank == 1


def test_options_reach_the_ranks_through_pdsh_as_they_are():
    from deepspeed.launcher.multinode_runner import PDSHRunner

    args = deepspeed_args(command(make_cluster()))
    remote, _, _ = PDSHRunner(args, "").get_cmd({}, {"node-a": [0]})
    words = " ".join(remote[remote.index("launch/train.py") + 1 :])
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {words}"], capture_output=True, text=True
    )
    expected = ["--ds_config", "ds_configs/zero3.json", "--log-folder", str(LOGS)]
    assert shown.stdout.splitlines() == [*expected, *train_words(RUN)]


def test_a_working_folder_that_a_remote_shell_would_change_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "w$(id)"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="working folder of a run through pdsh"):
        command(make_cluster())


def test_no_command_holds_what_is_hidden():
    for runner in ("pdsh", "openmpi", "mpich", "slurm"):
        cluster = make_cluster(runner, hidden_env={"HF_TOKEN": "xyz"})
        words = build_command(RUN, DEFAULT_DS_CONFIG, cluster, LOGS, hidden_file=LOGS / "e")
        assert "xyz" not in " ".join(words)
        assert words[words.index("--env-file") + 1] == str(LOGS / "e")


def test_what_a_remote_shell_would_change_is_refused():
    with pytest.raises(UserError, match="through pdsh"):
        command(make_cluster(env={"A": "$(date) x"}))


def test_the_global_batch_must_divide_over_the_cluster():
    with pytest.raises(UserError, match="world size=8"):
        command(make_cluster(), dataclasses.replace(RUN, global_batch=100))
