"""Generated batch scripts on a real SLURM of two nodes: preempted, requeued, resumed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cluster.slurm import CPUS, SlurmCluster
from tests.cluster.watching import assert_same_run, processes_of, steps_taken
from tests.e2e.commands import ROOT
from tests.overriding import with_last_options
from tests.waiting import WAIT_S, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.distributed]


def diablo_ds(slurm: SlurmCluster, *words: object) -> str:
    """Run `diablo-ds` where SLURM's commands find this cluster, and return what it prints."""
    done = subprocess.run(
        ["diablo-ds", *with_last_options(words)],
        cwd=ROOT,
        env=slurm.env,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def submit(slurm: SlurmCluster, options: list[str], folder: Path, *words: object) -> list[int]:
    where = (
        "--submit --no-check --ranks-per-node 1 --interface lo --master-addr 127.0.0.1 "
        "--env DS_ACCELERATOR=cpu"
    )
    output = diablo_ds(slurm, "slurm", *where.split(), *words, *options, "--output", folder)
    (line,) = (line for line in output.splitlines() if line.startswith("Submitted: "))
    return [int(number) for number in re.findall(r"\d+", line)]


def _slurm_log(folder: Path) -> str:
    return "\n".join(path.read_text() for path in (folder / "logs").glob("slurm-*.out"))


def test_a_preempted_job_goes_on_where_it_stopped(slurm, options, undisturbed, tmp_path):
    folder = tmp_path / "run"
    (job, *_) = submit(slurm, options, folder, "--nodes", 2)
    wait_until(lambda: steps_taken(folder) >= 1, "a step")
    stops = []
    # SLURM warns the batch script; preemption with a grace time tells the tasks alone.
    for signal in (["--signal=USR1", "--batch"], ["--signal=TERM"]):
        slurm.run("scancel", *signal, str(job))
        slurm.release(job)
        stops.append(steps_taken(folder))
        wait_until(lambda: steps_taken(folder) > stops[-1], "a step after the requeue")
    state = slurm.wait_for(job, ("COMPLETED", "FAILED", "CANCELLED"))
    log = _slurm_log(folder)
    assert state == "COMPLETED", log
    assert slurm.job_field(job, "Restarts") == "2"
    assert 1 <= stops[0] < stops[1] < 40
    for step in stops:
        assert f"Stopped after step {step} of 40" in log
        assert f"Resuming after step {step} " in log
    assert_same_run(folder, undisturbed)
    assert "time left   done" in diablo_ds(slurm, "status", folder)
    wait_until(lambda: not processes_of(folder), "all processes to end")


def test_a_failed_rank_is_explained_and_restarted(slurm, options, undisturbed, tmp_path):
    folder = tmp_path / "run"
    (job, *_) = submit(slurm, options, folder, "--nodes", 2, "--max-restarts", 1)
    wait_until(lambda: steps_taken(folder) >= 12, "12 steps")
    rank = [line for line in processes_of(folder) if "-m diablo_ds train" in line]
    assert len(rank) == 2
    subprocess.run(["pkill", "-KILL", "-n", "-f", f"diablo_ds train .*{folder}"], check=True)
    state = slurm.wait_for(job, ("COMPLETED", "FAILED", "CANCELLED"))
    log = _slurm_log(folder)
    assert state == "COMPLETED", log
    assert re.search(r"Error: rank \d on \S+ failed first, in .* of step \d+: killed by", log)
    assert re.search("Resuming after step [123]0 ", log)
    assert_same_run(folder, undisturbed)


def test_a_chain_and_an_array_run_to_their_ends_on_the_cpus_they_asked_for(
    slurm, options, tmp_path
):
    short = [*options, "--max-steps", "3", "--setup", "unset OMP_NUM_THREADS"]
    chain = submit(slurm, short, tmp_path / "chain", "--chain", 2, "--cpus-per-task", 1)
    sweep = ("--sweep", "learning-rate=1e-3,2e-3")
    (array, *_) = submit(slurm, short, tmp_path / "array", *sweep)
    assert len(chain) == 2
    for job in (*chain, array):
        assert slurm.wait_for(job, ("COMPLETED", "FAILED")) == "COMPLETED"
    assert "is done: " in _slurm_log(tmp_path / "chain")
    for value in ("1e-3", "2e-3"):
        assert (tmp_path / "array" / f"learning_rate-{value}" / "adapter").is_dir()
    assert slurm.job_field(chain[0], "NumCPUs") == "1"
    assert re.findall(r"x CPU with (\d+) thread", _slurm_log(tmp_path / "chain")) == ["1"]
    # The array asked for no number, and so has each node for itself.
    assert slurm.job_field(array, "NumCPUs") == str(CPUS)
    usable = min(CPUS, len(os.sched_getaffinity(0)))
    assert f"x CPU with {usable} thread" in _slurm_log(tmp_path / "array")
