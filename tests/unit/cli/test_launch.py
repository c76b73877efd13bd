from __future__ import annotations

import dataclasses

import click
import pytest
from click.testing import CliRunner

from diablo_ds.cli.cluster import ClusterOptions, build_cluster
from diablo_ds.cli.main import main, train
from diablo_ds.cli.run_options import build_run_config
from diablo_ds.config.run import RunConfig
from diablo_ds.config.words import train_words
from diablo_ds.errors import UserError
from diablo_ds.launcher.cluster import Host, hostfile_text
from tests.unit.launcher.cases import HOSTS, RUN, command, deepspeed_args

_NAMES = ("gpus_per_node", "ranks_per_node")


def test_the_options_of_a_command_give_the_same_run_config():
    context = train.make_context("train", train_words(RUN))
    assert build_run_config(context.params, 1) == RUN


def test_several_nodes_without_a_hostfile_are_refused(monkeypatch):
    with pytest.raises(UserError, match="needs --hostfile"):
        build_cluster(ClusterOptions(nodes=2))
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    with pytest.raises(UserError, match="SLURM_JOB_NUM_NODES=2"):
        build_cluster(ClusterOptions())


def test_devices_that_do_not_reach_other_hosts_are_said(tmp_path, monkeypatch, capsys):
    path = tmp_path / "hosts"
    path.write_text(hostfile_text(HOSTS))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    build_cluster(ClusterOptions(hostfile=path, env=("CUDA_VISIBLE_DEVICES",)))
    assert not capsys.readouterr().err
    build_cluster(ClusterOptions(hostfile=path))
    assert "CUDA_VISIBLE_DEVICES=6,7 is this shell's alone" in capsys.readouterr().err


def test_part_of_a_hostfile_can_be_used(tmp_path):
    path = tmp_path / "hosts"
    path.write_text(hostfile_text((*HOSTS, Host("node-c", 4))))
    cluster = build_cluster(ClusterOptions(hostfile=path, nodes=2, gpus_per_node=3))
    assert cluster.hosts == (Host("node-a", 3), Host("node-b", 3))
    args = deepspeed_args(command(cluster, dataclasses.replace(RUN, micro_batch=1)))
    assert (args.num_nodes, args.num_gpus) == (2, 3)
    with pytest.raises(UserError, match="node-a slots=4"):
        build_cluster(ClusterOptions(hostfile=path, gpus_per_node=8))


def test_the_ranks_of_a_host_have_two_names(tmp_path):
    path = tmp_path / "hosts"
    path.write_text(hostfile_text(HOSTS))
    for names in ({"gpus_per_node": 3}, {"ranks_per_node": 3}, dict.fromkeys(_NAMES, 3)):
        assert build_cluster(ClusterOptions(**names)).hosts == (Host("localhost", 3),)
        cluster = build_cluster(ClusterOptions(hostfile=path, **names))
        assert {host.slots for host in cluster.hosts} == {3}
    with pytest.raises(UserError, match="ranks_per_node=8, node-a slots=4"):
        build_cluster(ClusterOptions(hostfile=path, ranks_per_node=8))


@pytest.mark.parametrize("command", ["launch", "slurm"])
def test_two_numbers_of_ranks_are_refused(command, tmp_path):
    options = ["--gpus-per-node", "2", "--ranks-per-node", "3", "--output", str(tmp_path / "run")]
    result = CliRunner().invoke(main, [command, *options, "--dry-run"])
    assert result.exit_code == 2
    assert "must be equal; got gpus_per_node=2, ranks_per_node=3" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--check", "--dry-run"], "give one of"),
        (["--dry-run", "--ds-config", "nowhere.json"], "nowhere.json"),
        (["--max-restarts", "-1"], "max_restarts must be >= 0; got max_restarts=-1"),
        (["--master-port", "70000"], "master_port must be <= 65535; got master_port=70000"),
    ],
)
def test_wrong_options_of_the_launcher_start_nothing(options, message, tmp_path):
    from diablo_ds.cli.launch import launch

    result = CliRunner().invoke(launch, [*options, "--output", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "run").exists()


def test_the_help_of_the_launcher_names_every_run_option():
    from diablo_ds.cli.launch import launch

    text = launch.get_help(click.Context(launch))
    for field in dataclasses.fields(RunConfig):
        assert f"--{field.name.replace('_', '-')}" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sweep", "learning-rate=1,-2"], "run learning-rate=-2 of the sweep: learning_rate"),
        (["--sweep", "seed=1,2", "--seed", "3"], "by --sweep or by --seed, not by both"),
        (["--sweep", "ds-config=nowhere.json"], "nowhere.json"),
        (["--sweep", "micro-batch=2,3", "--global-batch", "4"], "run micro-batch=3 of the sweep"),
        (["--sweep", "seed=1,2", "--hostfile", "{hosts}"], "must run on this machine alone"),
    ],
)
def test_a_sweep_with_a_wrong_run_starts_none(options, message, tmp_path):
    from diablo_ds.cli.launch import launch

    hosts = tmp_path / "hosts"
    hosts.write_text(hostfile_text(HOSTS))
    words = [word.format(hosts=hosts) for word in options]
    result = CliRunner().invoke(launch, [*words, "--output", str(tmp_path / "sweep")])
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "sweep").exists()


def test_each_command_of_a_sweep_is_shown(tmp_path):
    from diablo_ds.cli.launch import launch

    words = ["--sweep", "seed=1,2", "--gpus-per-node", "1", "--dry-run"]
    result = CliRunner().invoke(launch, [*words, "--output", str(tmp_path / "sweep")])
    assert result.exit_code == 0, result.output
    for seed in (1, 2):
        assert f"# seed={seed}\n" in result.output
        assert f"--output {tmp_path}/sweep/seed={seed} --seed {seed}\n" in result.output
    assert not (tmp_path / "sweep").exists()
