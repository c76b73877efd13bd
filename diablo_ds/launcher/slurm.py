"""A run as a SLURM batch script: a pure function, so that what is shown is what runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diablo_ds.config.batch_resolution import resolve_batch
from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import option_name, with_value
from diablo_ds.config.words import train_words
from diablo_ds.files import modes
from diablo_ds.files.layout import LOGS_FOLDER
from diablo_ds.launcher import batch_shell
from diablo_ds.launcher.deepspeed_command import SCRIPT, shown_path
from diablo_ds.launcher.job import Job
from diablo_ds.launcher.node_share import NodeRequest, node_request
from diablo_ds.launcher.ports import PORT_TRIES
from diablo_ds.launcher.quoting import (
    Variable,
    bash_comment,
    bash_line,
    bash_option,
    bash_word,
    split_words,
)
from diablo_ds.launcher.sbatch_lines import sbatch_lines
from diablo_ds.ranks.environment import RUN_KEY
from diablo_ds.ranks.exit_codes import EXIT_PORT_IN_USE, EXIT_STOPPED, EXIT_USER_ERROR
from diablo_ds.ranks.records import WARNING_VARIABLE


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a batch script comes from, and where it goes."""

    command: str = ""
    """The command that made it, as a line for a shell, without secrets."""
    version: str = ""
    date: str = ""
    file: Path = Path("job.sbatch")
    """The script."""

    def lines(self) -> list[str]:
        """Return the header of the script."""
        lines = (
            f"Made by diablo-ds {self.version} on {self.date}, with",
            f"  {self.command}",
            f"Submit: {self.submission()}",
        )
        return [bash_comment(line) for line in lines]

    def submission(self) -> str:
        """Return the command that submits the script."""
        return bash_line(["sbatch", str(self.file)])


def build_script(
    run_config: RunConfig,
    ds_config: Path,
    job: Job,
    env: Mapping[str, str],
    folder: Path,
    *,
    request: NodeRequest | None = None,
    inherited: Sequence[str] = (),
    origin: Origin | None = None,
    recorded: RunConfig | None = None,
) -> str:
    """Return the text of a batch script.

    Each node runs `deepspeed --no_ssh` as a single task, so neither ssh nor MPI is needed. The
    first node of the allocation is the master. USR1, which SLURM sends ahead of the time limit, and
    TERM, which preemption sends, make the run stop at the next micro batch and save; the job then
    goes back into the queue, or leaves the rest to the next job of its chain. A cancelled job does
    not.

    Args:
        run_config: the run config, with its run folder.
        ds_config: DeepSpeed config file.
        job: what SLURM is asked for.
        env: environment variables of the ranks.
        folder: the folder in which the job works.
        request: what SLURM is asked for of each node; by default without knowing the nodes.
        inherited: names of variables that they get from where the job is submitted; their values
            are not in the script.
        origin: where the script comes from.
        recorded: the run config of the run that is continued.

    Raises:
        UserError: if the global batch does not divide over the ranks, or a folder's name cannot
            be that of SLURM's log.
    """
    low, high = job.node_range()
    field, values, runs = job.sweep_runs(run_config)
    for nodes in range(low, high + 1):
        for each in runs:
            resolve_batch(each, nodes * job.slots)
    request = request or node_request(job, ())
    origin = origin or Origin()
    command = _command(run_config, ds_config, job, env, field, recorded)
    sections = [
        "#!/bin/bash",
        *origin.lines(),
        *sbatch_lines(run_config, job, request, len(values), folder),
        "",
        f"cd -- {bash_word(str(folder))}",
        *job.setup,
        "set -u",  # not before: modules and conda use variables that are not set
        *([batch_shell.OWN_MEMORY] if request.has_memory else []),
        *(
            batch_shell.INHERITED.format(name=name, user_error=EXIT_USER_ERROR)
            for name in inherited
        ),
        *_run_folder_lines(run_config, field, values),
        batch_shell.START.format(
            umask=f"{modes.umask():03o}",
            job_name=batch_shell.ARRAY_JOB_NAME if values else batch_shell.JOB_NAME,
            logs=LOGS_FOLDER,
            slots=job.slots,
            warning_variable=WARNING_VARIABLE,
            warning_s=job.warning_s,
            master_addr=(bash_word(job.master_addr) if job.master_addr else batch_shell.FIRST_NODE),
            run_key=RUN_KEY,
            cpus=batch_shell.ASKED_CPUS if request.has_cpus_per_task else batch_shell.NODE_CPUS,
        ),
        batch_shell.RUN_ONCE.format(
            command=bash_word(command),
            restarts="restarts=0\n" if job.max_restarts else "",
        ),
        batch_shell.END.format(
            restart=(
                batch_shell.RESTART.format(max_restarts=job.max_restarts)
                if job.max_restarts
                else ""
            ),
            user_error=EXIT_USER_ERROR,
            stopped=EXIT_STOPPED,
            port_in_use=EXIT_PORT_IN_USE,
            max_port_tries=PORT_TRIES,
            requeue="" if job.chain > 1 else batch_shell.REQUEUE.format(stopped=EXIT_STOPPED),
            resume=bash_word(origin.submission()),
        ),
    ]
    return "\n".join(sections)


def _run_folder_lines(run_config: RunConfig, field: str, values: Sequence[str]) -> list[str]:
    folder = bash_word(run_config.output)
    if not values:
        return [f"run_folder={folder}"]
    return [
        f"values=({bash_line(values)})",
        'export value="${values[$SLURM_ARRAY_TASK_ID]}"',
        f'run_folder={folder}/{field}-"$value"',
    ]


def _command(
    run_config: RunConfig,
    ds_config: Path,
    job: Job,
    env: Mapping[str, str],
    field: str,
    recorded: RunConfig | None,
) -> str:
    """Return what each node runs, as a line for bash."""
    swept = {field: getattr(RunConfig(), field)} if field else {}
    script = with_value("--ds_config", shown_path(ds_config))
    for name, value in env.items():
        script += ["--env", f"{name}={value}"]
    script += train_words(replace(run_config, output="", **swept), recorded)
    parts = [
        bash_line([*split_words("wrap", job.wrap), "deepspeed", "--no_ssh"]),
        bash_option("--hostfile", Variable("hostfile")),
        bash_option("--node_rank", Variable("SLURM_NODEID")),
        bash_option("--master_addr", Variable("master_addr")),
        f"--master_port {job.master_port}",
        "--log_level critical",  # it would call the end of a run that was asked to stop an error
        bash_line([shown_path(SCRIPT), *script]),
        bash_option("--log-folder", Variable("log_folder")),
        bash_option("--output", Variable("run_folder")),
    ]
    if field:
        parts.append(bash_option(option_name(field), Variable("value")))
    # The launcher's processes ignore these; the ranks have handlers of their own.
    return f'trap "" USR1 TERM; exec {" ".join(parts)}'
