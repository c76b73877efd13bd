"""From cluster and run config to command lines and batch scripts; and who failed first."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from diablo_ds.cli.cluster import ClusterOptions, build_cluster
from diablo_ds.cli.main import train
from diablo_ds.cli.run_options import DEFAULT_DS_CONFIG, build_run_config
from diablo_ds.config.run import RunConfig
from diablo_ds.config.words import train_words
from diablo_ds.errors import UserError
from diablo_ds.launcher.cluster import Cluster, Host, hostfile_text, read_hostfile
from diablo_ds.launcher.deepspeed_command import build_command
from diablo_ds.launcher.job import Job, time_limit_s
from diablo_ds.launcher.slurm import build_script
from diablo_ds.launcher.supervisor import fitting_hosts, make_log_folder, next_log_folder
from diablo_ds.ranks.records import STOPPED, RankRecord, first_failure, write_record

RUN = RunConfig(
    output="runs/x",
    data="a b.jsonl",
    targets=("re:.*(q|v)_proj$", "model.layers.*.mlp.up_proj"),
    learning_rate=3e-4,
    packing=True,
    gradient_checkpointing=False,
    global_batch=96,
)
LOGS = Path("runs/x/logs/attempt-001")
HOSTS = (Host("node-a", 4), Host("node-b", 4))


def _cluster(runner: str = "pdsh", **changes) -> Cluster:
    return Cluster(runner=runner, hosts=HOSTS, hostfile=Path("hosts"), **changes)


def _command(cluster: Cluster, run: RunConfig = RUN) -> list[str]:
    return build_command(run, DEFAULT_DS_CONFIG, cluster, LOGS)


def _deepspeed_args(words: list[str]):
    from deepspeed.launcher.runner import parse_args

    assert words[0] == "deepspeed"
    return parse_args(words[1:])


# --- hostfiles and environments ------------------------------------------------------------------


def test_a_hostfile_is_read_as_it_is_written(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# ours\n\n" + hostfile_text(HOSTS) + "10.0.0.3  slots=2  # old\n")
    assert read_hostfile(path) == (*HOSTS, Host("10.0.0.3", 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a slots=1\nb 4\n", "got 'b 4' in .*hosts, line 2"),
        ("a slots=0\n", "at least one slot"),
        ("-Fplanted slots=1\n", "got '-Fplanted slots=1'"),  # an option of ssh
        ("a slots=" + "9" * 5000, "at least one slot; got 'a slots=999"),
        ("\ufeffa slots=1\nb\0 slots=1", r"got 'b\\x00 slots=1' in .*hosts, line 2"),
        ("a slots=1\n\na slots=2\n", "a again in .*, line 3"),
        ("# nothing\n", "at least one host; got none"),
    ],
)
def test_a_wrong_hostfile_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_hostfile(path)


def test_a_hostfile_in_another_encoding_is_named(tmp_path):
    (tmp_path / "hosts").write_text("a slots=1\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"text file; got .*hosts, line 1: .* it is UTF-16"):
        read_hostfile(tmp_path / "hosts")
    (tmp_path / "hosts").write_bytes(b"a slots=1\nb\xe9 slots=1\n")
    with pytest.raises(UserError, match="hosts, line 2: the text must be UTF-8"):
        read_hostfile(tmp_path / "hosts")
    with pytest.raises(UserError, match=r"must be readable; got .*: Is a directory"):
        read_hostfile(tmp_path)


# --- the command ---------------------------------------------------------------------------------


def test_the_options_of_a_command_give_the_same_run_config():
    context = train.make_context("train", train_words(RUN))
    assert build_run_config(context.params, 1) == RUN


@pytest.mark.parametrize("runner", ["pdsh", "openmpi", "mpich", "slurm"])
def test_deepspeed_understands_the_command(runner):
    args = _deepspeed_args(_command(_cluster(runner, master_port=12345, interface="ib0")))
    assert (args.hostfile, args.launcher, args.master_addr) == ("hosts", runner, "node-a")
    assert args.master_port == 12345
    assert args.user_script == "launch/train.py"
    assert "NCCL_SOCKET_IFNAME=ib0" in args.user_args


def test_a_rank_gets_the_python_of_its_venv_or_container():
    cluster = _cluster(venv=Path("/v"), wrap="apptainer exec x.sif")
    words = _command(cluster)
    assert words[words.index("--venv") + 1] == "/v"
    assert words[words.index("--wrap") + 1] == "apptainer exec x.sif"
    assert cluster.python() == ["apptainer", "exec", "x.sif", "/v/bin/python", "-P"]
    assert _cluster(wrap="c run").python() == ["c", "run", "python3", "-P"]  # the container's own
    assert _cluster().python() == [sys.executable, "-P"]


def test_every_host_starts_its_own_ranks_without_ssh():
    args = _deepspeed_args(_command(_cluster("no-ssh", node_rank=1)))
    assert args.no_ssh
    assert args.node_rank == 1


def test_options_reach_the_ranks_through_pdsh_as_they_are():
    from deepspeed.launcher.multinode_runner import PDSHRunner

    args = _deepspeed_args(_command(_cluster()))
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
        _command(_cluster())


def test_no_command_holds_what_is_hidden():
    for runner in ("pdsh", "openmpi", "mpich", "slurm"):
        cluster = _cluster(runner, hidden_env={"HF_TOKEN": "xyz"})
        words = build_command(RUN, DEFAULT_DS_CONFIG, cluster, LOGS, hidden_file=LOGS / "e")
        assert "xyz" not in " ".join(words)
        assert words[words.index("--env-file") + 1] == str(LOGS / "e")


def test_what_a_remote_shell_would_change_is_refused():
    with pytest.raises(UserError, match="through pdsh"):
        _command(_cluster(env={"A": "$(date) x"}))


def test_the_global_batch_must_divide_over_the_cluster():
    with pytest.raises(UserError, match="world size=8"):
        _command(_cluster(), dataclasses.replace(RUN, global_batch=100))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runner": "no-ssh"}, "node_rank goes with --no-ssh"),
        ({"runner": "pdsh", "node_rank": 0}, "node_rank goes with --no-ssh"),
        ({"runner": "openmpi", "ssh_port": 22}, "ssh_port is for the runner pdsh"),
        ({"runner": "local", "master_addr": "1.2.3.4"}, "master_addr is for the hosts"),
        ({"runner": "no-ssh", "node_rank": 2}, "from 0 to 1"),
        ({"runner": "pdsh", "interface": "ib0;id"}, "interface must be a word"),
        ({"runner": "pdsh", "wrap": "a\nb"}, "wrap must be text without control characters"),
        ({"runner": "pdsh", "hostfile": None}, "needs a hostfile"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message):
    values = {"hosts": HOSTS, "hostfile": Path("hosts"), **changes}
    with pytest.raises(UserError, match=message):
        Cluster(**values)


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
    args = _deepspeed_args(_command(cluster, dataclasses.replace(RUN, micro_batch=1)))
    assert (args.num_nodes, args.num_gpus) == (2, 3)
    with pytest.raises(UserError, match="node-a slots=4"):
        build_cluster(ClusterOptions(hostfile=path, gpus_per_node=8))


def test_a_smaller_cluster_keeps_the_global_batch():
    hosts = tuple(Host(f"h{number}", 4) for number in range(5))
    run = RunConfig(global_batch=96, micro_batch=2)
    assert len(fitting_hosts(run, hosts)) == 4  # 96 does not divide by 2 x 20
    assert len(fitting_hosts(run, hosts[:3])) == 3
    assert fitting_hosts(RunConfig(global_batch=2, micro_batch=2), hosts) == ()


# --- SLURM ---------------------------------------------------------------------------------------


def _job(**changes) -> Job:
    return Job(**{"gpus_per_node": 1, **changes})


@pytest.mark.parametrize(
    "job",
    [
        Job(nodes="2", gpus_per_node=4),
        Job(
            nodes="1-3",
            gpus_per_node=8,
            chain=3,
            setup=("module load cuda",),
            wrap="apptainer exec x",
        ),
        Job(ranks_per_node=4, sweep=("learning-rate=1e-3,2e-3",), max_restarts=2),
    ],
    ids=["plain", "chain", "array"],
)
def test_batch_scripts_are_correct_bash(job, tmp_path):
    run = dataclasses.replace(RUN, micro_batch=1, global_batch=96)
    text = build_script(run, DEFAULT_DS_CONFIG, job, {"A": "b c"}, Path("/home/me"))
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert ("scontrol requeue" in text) == (job.chain == 1)
    lines = text.splitlines()
    assert all(lines.index(line) < lines.index("set -u") for line in job.setup)
    assert ("--gpus-per-node" in text) == bool(job.gpus_per_node)
    assert ("--array=0-1" in text) == bool(job.sweep)
    assert "#SBATCH --signal=B:USR1@120" in lines
    assert "export DIABLO_SLURM_WARNING_S=120" in lines  # ranks compare it with their micro batch


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"nodes": "3-2"}, "nodes must be a number or a range"),
        ({"sweep": ("seed=1,two",)}, "sweep: invalid literal"),
        ({"sweep": ("learning-rate=1e-3,-1",)}, "learning_rate must be"),
        ({"sweep": ("colour=1",)}, "a setting of the run config"),
        ({"sweep": ("packing=true",)}, "that takes a value"),
        ({"sweep": ("seed=1",), "chain": 2}, "not both"),
        ({"nodes": "1-5", "gpus_per_node": 4}, "world size=20"),
    ],
)
def test_wrong_jobs_are_refused_before_anything_is_written(job, message):
    with pytest.raises(UserError, match=message):
        build_script(RUN, DEFAULT_DS_CONFIG, _job(**job), {}, Path())


def _script(run: RunConfig = RUN, folder: str = "/home/me", **changes) -> str:
    return build_script(run, DEFAULT_DS_CONFIG, _job(**changes), {}, Path(folder))


def _output_line(text: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith("#SBATCH --output="))
    return line.removeprefix("#SBATCH --output=")


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("runs/x", "/home/me/runs/x/logs/slurm-%j.out"),
        ("/data/x", "/data/x/logs/slurm-%j.out"),
        ("my run", '"/home/me/my run/logs/slurm-%j.out"'),
        ("a'b\"c", '"/home/me/a\'b\\"c/logs/slurm-%j.out"'),
        ("100%5", "/home/me/100%%5/logs/slurm-%j.out"),
        ("#x", '"/home/me/#x/logs/slurm-%j.out"'),
    ],
)
def test_slurms_log_is_in_the_run_folder_whatever_its_name(output, line):
    run = dataclasses.replace(RUN, output=output, micro_batch=1)
    assert _output_line(_script(run)) == line


def test_a_folder_that_slurm_cannot_write_its_log_to_is_refused():
    with pytest.raises(UserError, match="output must have no backslash"):
        _script(dataclasses.replace(RUN, output="a\\b", micro_batch=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partition": "p --uid=0"}, "partition must be a word"),
        ({"partition": "--uid=0"}, "partition must be a word"),
        ({"account": "a\nb"}, "account must be text without control characters"),
        ({"time": "1:00 --nice"}, "time must be a word"),
        ({"name": "a\n#SBATCH --uid=0"}, "name must be text without control characters"),
        ({"name": " "}, "name must not be empty"),
        ({"setup": ("module load a\nb",)}, "setup must be text without control characters"),
        ({"setup": ("export HF_TOKEN=abc",)}, "one that sets HF_TOKEN"),
        ({"wrap": "a\rb"}, "wrap must be text without control characters"),
        ({"sbatch_option": ("exclusive",)}, "sbatch_option must begin with -"),
        ({"sbatch_option": ("--time=1",)}, "must be given by --time"),
        ({"sbatch_option": ("-t1",)}, "must be given by --time"),
        ({"sbatch_option": ("--signal=B:USR1",)}, "must be given by --time and --warning-s"),
        ({"master_addr": "h;id"}, "master_addr must be a word"),
    ],
)
def test_what_would_be_more_than_one_option_of_sbatch_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        _job(**changes)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("5", 300), ("5:30", 330), ("1:02:03", 3723), ("2-1", 176400), ("1-0:30", 88200)),
        *(("1-1:1:1", 90061), ("UNLIMITED", 0), ("0", 0)),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(text, seconds):
    assert time_limit_s(text) == seconds


@pytest.mark.parametrize("text", ["1h", "1:2:3:4", "-5", "1-", "soon"])
def test_other_time_limits_are_refused(text):
    with pytest.raises(UserError, match="time must be minutes"):
        time_limit_s(text)


@pytest.mark.parametrize(("time", "warning_s"), [("1", 120), ("3:00", 120), ("0:30", 1)])
def test_a_job_that_would_stop_at_once_for_ever_is_refused(time, warning_s):
    with pytest.raises(UserError, match=f"time must be longer .* got time='{time}'"):
        _job(time=time, warning_s=warning_s)
    _job(time="3:01", warning_s=120)
    _job(time="0", warning_s=120)


def test_a_name_with_blanks_is_one_word_of_sbatch():
    text = _script(dataclasses.replace(RUN, micro_batch=1), name='my "job" --uid=0')
    assert '#SBATCH --job-name="my \\"job\\" --uid=0"' in text.splitlines()


def test_a_job_names_the_variables_that_it_inherits_and_holds_no_value():
    run = dataclasses.replace(RUN, micro_batch=1)
    text = build_script(run, DEFAULT_DS_CONFIG, _job(), {"A": "1"}, Path("/"), inherited=("B_KEY",))
    check, _, _ = text.partition("run_folder=")
    shown = subprocess.run(
        ["bash", "-c", check[check.index("set -u") :]], capture_output=True, text=True, env={}
    )
    assert shown.returncode == 2
    assert "B_KEY must be set where the job is submitted" in shown.stderr
    assert "--env A=1" in text
    assert "--env B_KEY" not in text


@pytest.mark.parametrize(("port", "word"), [(0, "0"), (12345, "12345")])
def test_ranks_choose_the_port_of_a_job_unless_it_is_given(port, word):
    text = _script(dataclasses.replace(RUN, micro_batch=1), master_port=port)
    assert f"--master_port {word} " in text


@pytest.mark.parametrize("line", ["a\nb", "a\x1bb", "a\udc80b"])
def test_settings_hold_no_control_characters(line):
    with pytest.raises(UserError, match="output must be text without control characters"):
        RunConfig(output=line)
    with pytest.raises(UserError, match="targets must be text without control characters"):
        RunConfig(targets=("a", line))


# --- who failed first ----------------------------------------------------------------------------


def _record(rank: int, **changes) -> RankRecord:
    return RankRecord(rank=rank, host="h", pid=1, world_size=3, started=1.0, **changes)


def test_the_first_failure_is_found_among_its_victims():
    killed = _record(0, ended=5.0, exit_code=137, cause="killed by SIGKILL")
    victim = _record(1, ended=5.2, exit_code=1, cause="exit code 1")
    asked = _record(2, ended=4.0, exit_code=143, by_request=True)
    assert first_failure([asked, victim, killed]) is killed
    assert first_failure([victim, _record(2)]).rank == 2  # it vanished with its host
    silent = "no sign of life for 8 s"
    hung = _record(0, ended=5.0, exit_code=137, cause=silent)
    stopped = _record(1, ended=5.3, exit_code=137, cause=f"{silent}; it is {STOPPED}")
    assert first_failure([hung, stopped]) is stopped
    assert first_failure([_record(0, ended=1.0, exit_code=0)]) is None


def test_all_hosts_of_a_start_come_to_the_same_log_folder(tmp_path):
    first, second = (_cluster("no-ssh", node_rank=rank) for rank in (0, 1))
    expected = tmp_path / "attempt-001"
    assert next_log_folder(tmp_path, first) == expected
    expected.mkdir(parents=True)
    write_record(expected, _record(0))  # the first host has started already
    assert next_log_folder(tmp_path, second) == expected
    assert next_log_folder(tmp_path, first) == tmp_path / "attempt-002"
    assert make_log_folder(tmp_path, second) == expected


def test_two_launchers_never_share_a_log_folder(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: make_log_folder(tmp_path, _cluster()), range(8)))
    assert sorted(path.name for path in folders) == [f"attempt-{n:03d}" for n in range(1, 9)]


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
