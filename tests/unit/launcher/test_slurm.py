from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from diablo_ds.cli.run_options import DEFAULT_DS_CONFIG
from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.launcher.job import Job
from diablo_ds.launcher.slurm import build_script
from tests.unit.launcher.cases import RUN, make_job


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
        build_script(RUN, DEFAULT_DS_CONFIG, make_job(**job), {}, Path())


def _script(run: RunConfig = RUN, folder: str = "/home/me", **changes) -> str:
    return build_script(run, DEFAULT_DS_CONFIG, make_job(**changes), {}, Path(folder))


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


def test_a_name_with_blanks_is_one_word_of_sbatch():
    text = _script(dataclasses.replace(RUN, micro_batch=1), name='my "job" --uid=0')
    assert '#SBATCH --job-name="my \\"job\\" --uid=0"' in text.splitlines()


def test_a_job_names_the_variables_that_it_inherits_and_holds_no_value():
    run = dataclasses.replace(RUN, micro_batch=1)
    text = build_script(
        run, DEFAULT_DS_CONFIG, make_job(), {"A": "1"}, Path("/"), inherited=("B_KEY",)
    )
    check, _, _ = text.partition("run_folder=")
    shown = subprocess.run(
        ["bash", "-c", check[check.index("set -u") :]], capture_output=True, text=True, env={}
    )
    assert shown.returncode == 2
    assert "B_KEY must be set where the job is submitted" in shown.stderr
    assert "--env A=1" in text
    assert "--env B_KEY" not in text


def test_a_job_that_asks_for_memory_drops_what_another_jobs_shell_says_of_it():
    run = dataclasses.replace(RUN, micro_batch=1)
    asks = build_script(run, DEFAULT_DS_CONFIG, make_job(mem="9G"), {}, Path("/"))
    per_cpu = make_job(sbatch_option=("--mem-per-cpu=1G",))
    assert "unset SLURM_MEM_PER_CPU" in asks
    assert "unset" not in build_script(run, DEFAULT_DS_CONFIG, per_cpu, {}, Path("/"))


@pytest.mark.parametrize(("port", "word"), [(0, "0"), (12345, "12345")])
def test_ranks_choose_the_port_of_a_job_unless_it_is_given(port, word):
    text = _script(dataclasses.replace(RUN, micro_batch=1), master_port=port)
    assert f"--master_port {word} " in text
