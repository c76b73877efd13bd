"""The submission of a batch script to SLURM, alone or as a chain of jobs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from diablo_ds.errors import UserError
from diablo_ds.launcher.job import Job


def submit(script: Path, job: Job, hidden: Mapping[str, str]) -> list[int]:
    """Hand the script to SLURM, once for each link of the chain; return the jobs' numbers.

    Args:
        script: the batch script.
        job: what it was made from.
        hidden: variables that the job takes from the environment in which it is submitted.

    Raises:
        UserError: if sbatch is missing or refuses it.
    """
    numbers: list[int] = []
    for _ in range(job.chain):
        after = [f"--dependency=afterany:{numbers[-1]}"] if numbers else []
        try:
            done = subprocess.run(
                ["sbatch", "--parsable", *after, *(["--export=ALL"] * bool(hidden)), str(script)],
                env={**os.environ, **hidden},
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as error:
            raise UserError(f"submitting needs the command sbatch; got {error}") from None
        if done.returncode:
            raise UserError(f"sbatch must accept the job; got {done.stderr.strip()}")
        numbers.append(int(done.stdout.split(";")[0]))
    return numbers
