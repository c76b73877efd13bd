"""Which rank a process is: the complete set of one launcher, or alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from diablo_ds.ranks.identity import IdentityError, find_identity
from tests.e2e.commands import environment

TORCH = {
    **{"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"},
    **{"MASTER_ADDR": "a", "MASTER_PORT": "29500"},
}
PLACE = {"MASTER_ADDR": "a", "MASTER_PORT": "1234"}
STEP = {
    **{"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "5"},
    **{"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_NODEID": "1"},
}
MPI = {
    **{"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
    **{"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
}
PMI = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}
BATCH_SHELL = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("variables", "text", "local"),
    [
        ({}, "rank 0 of 1, alone", (0, 1)),
        ({**TORCH, "CROSS_SIZE": "2", "LOCAL_SIZE": "2"}, "rank 3 of 4, from DeepSpeed", (1, 2)),
        (
            {**TORCH, "TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"},
            "rank 3 of 4, from torchrun",
            (1, 2),
        ),
        (TORCH, "rank 3 of 4, from RANK and WORLD_SIZE", (1, None)),
        ({**STEP, **PLACE}, "rank 3 of 5, from SLURM", (1, 2)),
        ({**MPI, **PLACE}, "rank 1 of 2, from OpenMPI", (1, 2)),
        ({**PMI, **PLACE}, "rank 1 of 2, from MPICH", (0, 1)),
        # a launcher that was started in a task, and a guard that translated a task's variables
        ({**STEP, **TORCH, "CROSS_SIZE": "2"}, "rank 3 of 4, from DeepSpeed", (1, None)),
        ({**STEP, **TORCH, "DIABLO_LAUNCHER": "SLURM"}, "rank 3 of 4, from SLURM", (1, None)),
        # what shells, start-up files and batch jobs leave
        (PLACE, "rank 0 of 1, alone", (0, 1)),
        ({**BATCH_SHELL, **PLACE}, "rank 0 of 1, alone", (0, 1)),
        ({"RANK": "", "WORLD_SIZE": ""}, "rank 0 of 1, alone", (0, 1)),
        ({**STEP, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, "rank 0 of 1, alone", (0, 1)),
    ],
)
def test_a_complete_set_of_one_launcher_decides(variables, text, local):
    found = find_identity(variables)
    assert found.describe() == text
    assert (found.local_rank, found.local_size) == local
    if found.launcher:
        assert find_identity(found.variables()).describe() == text


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "1"}, "without LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"LOCAL_RANK": "0"}, "without RANK, WORLD_SIZE"),
        ({**TORCH, "MASTER_PORT": ""}, "without MASTER_PORT"),
        ({**TORCH, "RANK": "4"}, "RANK and LOCAL_RANK must be below WORLD_SIZE; got RANK=4"),
        ({**TORCH, "RANK": "one"}, "RANK must be an integer; got RANK='one'"),
        ({**TORCH, "MASTER_PORT": "99999"}, "MASTER_PORT must be at most 65535"),
        (STEP, "5 tasks that SLURM started .* no MASTER_ADDR and no MASTER_PORT in task 3"),
        ({**STEP, "MASTER_ADDR": "a"}, "got no MASTER_PORT in task 3; use diablo-ds slurm"),
        (MPI, "2 tasks that OpenMPI started must know"),
        ({**STEP, "SLURM_PROCID": ""}, "variables of SLURM must be complete.*SLURM_PROCID"),
        (
            {**STEP, **TORCH, "RANK": "0", "WORLD_SIZE": "2"},
            "ranks must be those of one launcher; got RANK=0, .*SLURM_STEP_NUM_TASKS=5 from SLURM",
        ),
    ],
)
def test_other_sets_are_named_and_refused(variables, message):
    with pytest.raises(IdentityError, match=message):
        find_identity(variables)


@pytest.mark.parametrize("command", [["-m", "diablo_ds", "train"], ["launch/train.py"]])
def test_a_partial_set_is_refused_on_every_rank_before_anything_heavy(command, tmp_path):
    env = {**environment(), "RANK": "1", "WORLD_SIZE": "2"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command, "--output", tmp_path / "run"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Error: a launcher's variables must be complete; got RANK=1" in done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not {"deepspeed", "transformers"} & imported
    assert not (tmp_path / "run").exists()


def test_a_rank_number_left_over_silences_no_other_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "diablo_ds", "inspect", tmp_path / "nowhere"],
        env={**environment(), "RANK": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "nowhere" in done.stderr
