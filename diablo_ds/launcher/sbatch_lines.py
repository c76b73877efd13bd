"""The #SBATCH lines of a batch script."""

from __future__ import annotations

from pathlib import Path

from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.files.layout import RunFolder
from diablo_ds.launcher.job import Job
from diablo_ds.launcher.node_share import NodeRequest
from diablo_ds.launcher.quoting import check_line, sbatch_line, sbatch_option


def sbatch_lines(
    run_config: RunConfig, job: Job, request: NodeRequest, num_values: int, folder: Path
) -> list[str]:
    """Return the lines of a batch script that tell `sbatch` what the job asks for.

    Args:
        run_config: the run config, with its run folder.
        job: what SLURM is asked for.
        request: what it is asked for of each node.
        num_values: jobs of the array; 0 for no array.
        folder: the folder in which the job works.

    Raises:
        UserError: if a folder's name cannot be that of SLURM's log, or stand in a script's line.
    """
    number = "%A_%a" if num_values else "%j"
    # SLURM reads a relative path from where the script is submitted.
    logs = RunFolder(folder.absolute() / run_config.output).logs
    check_line("the folder of a job", str(folder.absolute()))  # settings have been checked
    if "\\" in str(logs):
        raise UserError(
            "output must have no backslash for SLURM, which would not fill in the job's number; "
            f"got output={run_config.output!r} in {folder}"
        )
    log = f"{str(logs).replace('%', '%%')}/slurm-{number}.out"
    options = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": "1",
        "output": log,
        "open-mode": "append",
        "requeue": None,
        "signal": f"B:USR1@{job.warning_s}",
    }
    optional = {
        "gpus-per-node": job.gpus_per_node,
        "partition": job.partition,
        "account": job.account,
        "time": job.time,
        "array": f"0-{num_values - 1}" if num_values else "",
    }
    options |= {name: str(value) for name, value in optional.items() if value}
    own = [sbatch_line(f"--{name}", value) for name, value in options.items()]
    return [*own, *map(sbatch_option, (*request.options, *job.sbatch_option))]
