"""A secret reaches the ranks, and nobody else: no command line, file, log or screen shows it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from diablo_ds.files.layout import list_checkpoints
from tests.cluster.test_slurm import diablo_ds, submit
from tests.cluster.test_ssh import launch
from tests.cluster.watching import (
    SECRET,
    Observer,
    assert_same_run,
    hostile_folder,
    output_of,
    processes_of,
    steps_taken,
)
from tests.e2e.commands import environment
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.distributed]
WITH_SECRET = ("--env", "HF_TOKEN")


def _modes(folder: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in (folder, *(folder / "logs").rglob("*"))}


def test_over_ssh_a_secret_is_in_a_file_until_all_ranks_have_read_it(
    hosts, options, undisturbed, tmp_path
):
    folder = tmp_path / "run"
    hosts.env["HF_TOKEN"] = SECRET
    run = launch(hosts, folder, *options, *WITH_SECRET, cwd=hostile_folder(tmp_path))
    observer = Observer(folder)
    file = folder / "logs" / "attempt-001" / "environment"
    observer.watch(file.exists)
    assert file.stat().st_mode & 0o777 == 0o600
    observer.watch(lambda: steps_taken(folder) >= 1)
    assert not file.exists()
    assert observer.files_with_secret() == []
    observer.watch(lambda: run.poll() is not None or steps_taken(folder) >= 40)
    output = output_of(run)
    assert run.returncode == 0, output
    assert "node-a: step 40/40" in output
    assert_same_run(folder, undisturbed)
    assert len(observer.reached) >= 2  # a rank may fork
    assert observer.seen == set()
    assert SECRET not in output
    assert not (tmp_path / "executed").exists(), (tmp_path / "executed").read_text()
    assert observer.files_with_secret() == []
    assert _modes(folder) <= {0o700, 0o600}


def test_a_start_that_fails_leaves_no_secret_behind(hosts, options, tmp_path):
    hosts.env["HF_TOKEN"] = SECRET
    folder = tmp_path / "run"
    words = (*options, *WITH_SECRET, "--skip-checks", "--launcher-args=--no-such-option")
    run = launch(hosts, folder, *words)
    output = output_of(run)
    assert run.returncode != 0
    assert SECRET not in output
    assert Observer(folder).files_with_secret() == []


def test_a_job_hides_a_secret_tells_its_state_and_saves_when_it_is_cancelled(
    slurm, options, tmp_path
):
    folder = tmp_path / 'a "run" of 100%5'
    # More steps than can be taken while a busy machine gets round to asking and cancelling.
    longer = [*options, "--max-steps", "4000"]
    slurm.env["HF_TOKEN"] = SECRET
    try:
        (job,) = submit(slurm, longer, folder, "--nodes", 2, *WITH_SECRET)
    finally:
        del slurm.env["HF_TOKEN"]
    observer = Observer(folder)
    observer.watch(lambda: steps_taken(folder) >= 1)
    status = diablo_ds(slurm, "status", folder)
    assert re.search(r"step +\d+/4000", status), status
    assert "2 running" in status
    slurm.run("scancel", str(job))
    slurm.wait_for(job, ("CANCELLED",))
    wait_until(lambda: not processes_of(folder), "all processes to end")
    assert slurm.job_field(job, "JobState") == "CANCELLED"
    assert slurm.job_field(job, "Restarts") == "0"
    assert list_checkpoints(folder / "checkpoints")
    assert len(observer.reached) >= 2  # a rank may fork
    assert observer.seen == set()
    assert observer.files_with_secret() == []
    assert (folder / "logs" / f"slurm-{job}.out").is_file()
    text = (folder / "logs" / "job.sbatch").read_text()
    assert "HF_TOKEN" in text
    without = subprocess.run(
        ["bash", "-c", f"sed -n '/^if .*HF_TOKEN/,/^fi/p' '{folder}/logs/job.sbatch' | bash"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert without.returncode == 2
    assert "HF_TOKEN must be set where the job is submitted" in without.stderr
