"""Hostile texts for every option: what is started has the words that were meant, or none."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from diablo_ds.cli.cluster import ClusterOptions
from diablo_ds.cli.main import train
from diablo_ds.cli.run_options import DEFAULT_DS_CONFIG, build_run_config
from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import settings_of
from diablo_ds.errors import UserError
from diablo_ds.launcher import quoting
from diablo_ds.launcher.job import Job
from diablo_ds.launcher.quoting import (
    bash_line,
    line_in_folder,
    pdsh_export,
    pdsh_word,
    sbatch_option,
)
from diablo_ds.launcher.rank_start import split_options
from diablo_ds.launcher.slurm import build_script
from tests.unit.launcher.cases import HOSTS, command, deepspeed_args, make_cluster, make_job

CONTROL = "\t\n\r\x1b\x00\u2028\u202e"
PIECES = [
    "$(touch PWNED)",
    "`touch PWNED`",
    "${HOME}",
    "%h",
    "%n",
    "%%",
    "\\n",
    "--",
    "--wrap=touch PWNED",
    "--venv=/tmp",
    "--env",
    "--log-folder",
    "--uid=0",
    "#SBATCH x",
    "a",
]
PARTS = [*"'\"`$\\!%#;&|<>()[]{}*?~=-/ \u00e9", *CONTROL, *PIECES]
HOSTILE = st.lists(st.sampled_from(PARTS), max_size=6).map("".join)
ON_ONE_LINE = HOSTILE.filter(lambda text: not set(text) & set(CONTROL))
RUN = RunConfig(data=("x",), global_batch=8, micro_batch=1, output="runs/x")
TEXTS = [s.name for s in settings_of(RunConfig) if s.kind is str and not s.choices]
FEW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)


def _bash(line: str, folder: Path | None = None, **env: str) -> list[str]:
    done = subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        cwd=folder,
        env={"PATH": os.environ["PATH"], **env},
        check=True,
    )
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


def _run_with(name: str, value: str) -> RunConfig:
    """Return a run with a hostile setting; where that is refused, the example says nothing."""
    is_repeatable = next(s for s in settings_of(RunConfig) if s.name == name).is_repeatable
    try:
        return dataclasses.replace(RUN, **{name: (value,) if is_repeatable else value})
    except UserError:
        assume(False)
        raise


def _understood(words: list[str]) -> RunConfig:
    """Return the run config that a rank gets by the words after the script."""
    own, arguments = split_options(words)
    assert (own.venv, own.wrap) == (None, "")
    context = train.make_context("train", arguments)
    return build_run_config(context.params, 8)


@FEW
@given(words=st.lists(ON_ONE_LINE, min_size=1, max_size=4))
def test_a_shell_reads_the_words_that_were_meant(words, tmp_path):
    assert _bash(f"printf '%s\\0' {bash_line(words)}", tmp_path) == words
    folder = tmp_path / "-a $(touch PWNED)'\""
    folder.mkdir(exist_ok=True)
    line = line_in_folder(folder.name, ["printf", "%s\\0", *words])
    assert _bash(line, tmp_path) == words
    assert not list(tmp_path.rglob("PWNED"))


@FEW
@given(name=st.sampled_from(TEXTS), value=HOSTILE)
@example(name="model", value="--wrap=touch PWNED")
@example(name="output", value="100%hosts")
def test_a_setting_of_a_run_reaches_its_ranks_as_it_is_on_one_host(name, value):
    run = _run_with(name, value)
    cluster = dataclasses.replace(make_cluster("local"), hosts=HOSTS[:1], hostfile=None)
    args = deepspeed_args(command(cluster, run))
    assert args.user_script == "launch/train.py"
    assert _understood(args.user_args) == run


def _by_pdsh(words: list[str], host: str) -> str:
    """Return the line that pdsh has a host's shell run."""
    kinds = {"%h": host, "%u": "me", "%n": "0", "%%": "%"}
    return re.sub("%[hun%]", lambda match: kinds[match[0]], " ".join(words))


@FEW
@given(name=st.sampled_from(TEXTS), value=HOSTILE)
@example(name="model", value="--wrap=touch PWNED")
@example(name="output", value="100%hosts")
def test_a_setting_of_a_run_reaches_its_ranks_as_it_is_by_pdsh(name, value, tmp_path):
    from deepspeed.launcher.multinode_runner import PDSHRunner

    run = _run_with(name, value)
    refusal = None
    try:
        args = deepspeed_args(command(make_cluster(), run))
    except UserError as error:
        refusal = str(error)
    if refusal is not None:
        assert "through pdsh" in refusal
        return
    words, _, _ = PDSHRunner(args, "").get_cmd({}, {"node-a": [0]})
    line = _by_pdsh(words[words.index("launch/train.py") + 1 :], "node-a")
    assert _understood(_bash(f"printf '%s\\0' {line}", tmp_path)) == run
    assert not list(tmp_path.iterdir())


@FEW
@given(value=ON_ONE_LINE)
@example(value="$(touch PWNED)")
def test_a_variable_reaches_a_host_as_it_is_by_pdsh(value, tmp_path):
    from deepspeed.launcher.multinode_runner import PDSHRunner

    runner = PDSHRunner(deepspeed_args(command(make_cluster())), "")
    runner.add_export("UCX_X", pdsh_export(value))
    words, _, _ = runner.get_cmd({}, {"node-a": [0]})
    exports = _by_pdsh([word for word in words if word.startswith("export ")], "node-a")
    assert _bash(f"{exports} printf '%s\\0' \"$UCX_X\"", tmp_path) == [value.strip()]
    assert not list(tmp_path.iterdir())


_STUBS = {
    "srun": 'while [ "$1" != bash ]; do shift; done; exec "$@"',
    "deepspeed": 'printf \'%s\\0\' "$@" > "$FOUND"',
    "scontrol": "echo node-a",
}


@pytest.fixture(scope="module")
def stubs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bin")
    for name, text in _STUBS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


@FEW
@given(name=st.sampled_from(TEXTS), value=HOSTILE, of_job=ON_ONE_LINE)
@example(name="output", value="--wrap=touch PWNED", of_job="")
def test_a_setting_of_a_run_reaches_its_ranks_as_it_is_by_slurm(
    name, value, of_job, stubs, tmp_path
):
    run = _run_with(name, value)
    folder = tmp_path / "$(touch PWNED) `id`"
    folder.mkdir(exist_ok=True)
    job = make_job(ranks_per_node=8, gpus_per_node=None, name=f"n{of_job}")
    refusal = None
    try:
        text = build_script(run, DEFAULT_DS_CONFIG, job, {"A": of_job}, folder)
    except UserError as error:
        refusal = str(error)
    if refusal is not None:
        assert "output must have no backslash" in refusal
        return
    found = tmp_path / "words"
    variables = {"SLURM_JOB_ID": "7", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "a"}
    variables |= {"SLURM_JOB_CPUS_PER_NODE": "1", "SLURM_CPUS_PER_TASK": "1"}
    path = f"{stubs}:{os.environ['PATH']}"
    subprocess.run(
        ["bash"],
        input=text.encode(),
        cwd=tmp_path,
        env={**variables, "PATH": path, "FOUND": str(found)},
        check=True,
    )
    words = [os.fsdecode(word) for word in found.read_bytes().split(b"\0")[:-1]]
    args = deepspeed_args(["deepspeed", *words])
    assert (args.master_addr, args.node_rank) == ("node-a", 0)
    assert args.user_script == "launch/train.py"
    assert f"A={of_job}" in args.user_args
    assert _understood(args.user_args) == run
    assert not list(tmp_path.rglob("PWNED"))


LAUNCHING = [(cls, s) for cls in (Job, ClusterOptions) for s in settings_of(cls) if s.kind is str]


@FEW
@given(case=st.sampled_from(LAUNCHING), value=HOSTILE)
def test_no_option_of_a_launch_becomes_another_line_or_option(case, value):
    cls, setting = case
    assume(setting.name != "setup")  # lines of shell
    changes = {setting.name: (value,) if setting.is_repeatable else value}
    try:
        made = Job(**{"gpus_per_node": 1, **changes}) if cls is Job else ClusterOptions(**changes)
        text = build_script(RUN, DEFAULT_DS_CONFIG, made, {}, Path("/")) if cls is Job else "\n\ncd"
    except UserError:
        return
    assert not set(value) & set(CONTROL)
    head = text[: text.index("\n\ncd")].splitlines()
    assert all(line.startswith("#") for line in head)


def test_no_other_room_of_the_launcher_quotes_and_nothing_is_given_to_a_shell_as_text():
    package = Path(quoting.__file__).parents[1]
    texts = {str(path.relative_to(package)): path.read_text() for path in package.rglob("*.py")}
    for_people = {"launcher/rank_start.py", "launcher/start_command.py"}
    quoting_rooms = {
        name for name, text in texts.items() if "import shlex" in text and "launcher/" in name
    }
    assert quoting_rooms == {"launcher/quoting.py", *for_people}
    assert not [name for name, text in texts.items() if re.search(r"shell=True|os\.system", text)]


def test_pdsh_replaces_nothing_in_a_word(tmp_path):
    assert pdsh_word("50%n") == "50%%n"
    with pytest.raises(UserError, match="through pdsh"):
        pdsh_word("a $x")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("--qos=long", "--qos=long"),
        ("--qos long", "--qos=long"),
        ("-C gpu&fast", '-C "gpu&fast"'),
        ("--comment=a --uid=0", '--comment="a --uid=0"'),
        ("--comment=", '--comment=""'),
        ("--exclusive", "--exclusive"),
    ],
)
def test_an_option_of_sbatch_stays_one(text, line):
    assert sbatch_option(text) == f"#SBATCH {line}"
