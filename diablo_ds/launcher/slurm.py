"""A run as a SLURM batch script: a pure function, and its submission."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from diablo_ds.config.batch_resolution import resolve_batch
from diablo_ds.config.run import RunConfig
from diablo_ds.config.words import train_words
from diablo_ds.errors import UserError
from diablo_ds.files.layout import LOGS_FOLDER, SHELL_IS_DONE, RunFolder
from diablo_ds.launcher.deepspeed_command import SCRIPT, shown_path
from diablo_ds.launcher.job import Job
from diablo_ds.launcher.ports import PORT_TRIES
from diablo_ds.ranks.environment import RUN_KEY
from diablo_ds.ranks.exit_codes import EXIT_PORT_IN_USE, EXIT_STOPPED, EXIT_USER_ERROR
from diablo_ds.ranks.records import WARNING_VARIABLE


class Variable(str):
    """A word of a command that the shell fills in; its value is the variable's name."""


def build_script(
    run_config: RunConfig,
    ds_config: Path,
    job: Job,
    env: Mapping[str, str],
    folder: Path,
    *,
    inherited: Sequence[str] = (),
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
        inherited: names of variables that they get from where the job is submitted; their values
            are not in the script.

    Raises:
        UserError: if the global batch does not divide over the ranks, or a folder's name cannot
            be that of SLURM's log.
    """
    low, high = job.node_range()
    field, values, runs = job.sweep_runs(run_config)
    for nodes in range(low, high + 1):
        for each in runs:
            resolve_batch(each, nodes * job.slots)
    sections = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in _sbatch_options(run_config, job, len(values), folder)),
        "",
        f"cd {shlex.quote(str(folder))}",
        *job.setup,
        "set -u",  # not before: modules and conda use variables that are not set
        *(_INHERITED.format(name=name, user_error=EXIT_USER_ERROR) for name in inherited),
        *_run_folder_lines(run_config, job, field, values),
        # With changed data a run that was done before is continued.
        "" if run_config.allow_changed_data else _EXIT_IF_DONE.format(is_done=SHELL_IS_DONE),
        _START.format(
            logs=LOGS_FOLDER,
            slots=job.slots,
            warning_variable=WARNING_VARIABLE,
            warning_s=job.warning_s,
            master_addr=shlex.quote(job.master_addr) if job.master_addr else _FIRST_NODE,
            run_key=RUN_KEY,
        ),
        _RUN_ONCE.format(command=shlex.quote(_command(run_config, ds_config, job, env, field))),
        _END.format(
            max_restarts=job.max_restarts,
            user_error=EXIT_USER_ERROR,
            stopped=EXIT_STOPPED,
            port_in_use=EXIT_PORT_IN_USE,
            max_port_tries=PORT_TRIES,
            requeue="" if job.chain > 1 else _REQUEUE.format(stopped=EXIT_STOPPED),
        ),
    ]
    return "\n".join(sections)


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


def _sbatch_options(run_config: RunConfig, job: Job, num_values: int, folder: Path) -> list[str]:
    number = "%A_%a" if num_values else "%j"
    logs = RunFolder(folder / run_config.output).logs
    if "\\" in str(logs):
        raise UserError(
            "output must have no backslash for SLURM, which would not fill in the job's number; "
            f"got output={run_config.output!r} in {folder}"
        )
    log = f"{str(logs).replace('%', '%%')}/slurm-{number}.out"
    options = [
        f"--job-name={_sbatch_quoted(job.name)}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        f"--output={_sbatch_quoted(log)}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{job.warning_s}",
    ]
    optional = {
        "gpus-per-node": job.gpus_per_node,
        "cpus-per-task": job.cpus_per_task,
        "partition": job.partition,
        "account": job.account,
        "time": job.time,
        "array": f"0-{num_values - 1}" if num_values else "",
    }
    return [*options, *(f"--{k}={v}" for k, v in optional.items() if v), *job.sbatch_option]


def _sbatch_quoted(value: str) -> str:
    """Quote a value of an #SBATCH line, which sbatch takes apart by rules of its own."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return value if re.fullmatch(r"[\w./%:@+=,-]+", value, re.ASCII) else f'"{escaped}"'


def _run_folder_lines(
    run_config: RunConfig, job: Job, field: str, values: Sequence[str]
) -> list[str]:
    folder = shlex.quote(run_config.output)
    if not values:
        return [f"run_folder={folder}"]
    return [
        f"values=({shlex.join(values)})",
        'export value="${values[$SLURM_ARRAY_TASK_ID]}"',
        f'run_folder={folder}/{field}-"$value"',
    ]


def _command(
    run_config: RunConfig, ds_config: Path, job: Job, env: Mapping[str, str], field: str
) -> str:
    """Return what each node runs, as a line for bash."""
    words: list[str] = [
        *shlex.split(job.wrap),
        "deepspeed",
        "--no_ssh",
        "--hostfile",
        Variable("hostfile"),
        "--node_rank",
        Variable("SLURM_NODEID"),
        "--master_addr",
        Variable("master_addr"),
        "--master_port",
        str(job.master_port),
        # It would call the end of a run that was asked to stop an error.
        "--log_level",
        "critical",
        shown_path(SCRIPT),
        "--ds_config",
        shown_path(ds_config),
        "--log-folder",
        Variable("log_folder"),
    ]
    for name, value in env.items():
        words += ["--env", f"{name}={value}"]
    swept = {field: getattr(RunConfig(), field)} if field else {}
    words += train_words(replace(run_config, output="", **swept))
    words += ["--output", Variable("run_folder")]
    if field:
        words += [f"--{field.replace('_', '-')}", Variable("value")]
    # The launcher's processes ignore these; the ranks have handlers of their own.
    return 'trap "" USR1 TERM; exec ' + " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    return f'"${word}"' if isinstance(word, Variable) else shlex.quote(word)


_FIRST_NODE = '"$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"'

_INHERITED = """\
if [ -z "${{{name}+set}}" ]; then
    echo "Error: {name} must be set where the job is submitted, and be exported to it" >&2
    exit {user_error}
fi"""

_EXIT_IF_DONE = """\
if {is_done}; then
    echo "$run_folder is done."
    exit 0
fi"""

_START = """\
job_name="${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}"
logs="$run_folder/{logs}/$job_name-${{SLURM_RESTART_COUNT:-0}}"
(umask 077 && mkdir -p "$logs")
export run_folder log_folder
# Python imports what lies in the working folder first where it starts a module by its name.
export PYTHONSAFEPATH=1
export {run_key}="$(od -An -N16 -tx1 /dev/urandom | tr -d ' \\n')"
export {warning_variable}={warning_s}
export hostfile="$logs/hostfile"
export master_addr={master_addr}
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed 's/$/ slots={slots}/' > "$hostfile"
"""

_RUN_ONCE = """\
attempt=0
restarts=0
port_tries=0
signals=0
trap 'signals=$((signals + 1)); scancel --signal=USR1 "$SLURM_JOB_ID.$attempt"' USR1 TERM

run_once() {{
    log_folder="$logs/attempt-$attempt"
    (umask 077 && mkdir -p "$log_folder")
    # A node that is done must not cut the others short; after a failure the guards end them.
    srun --export=ALL --kill-on-bad-exit=0 bash -c {command} &
    while :; do
        before=$signals
        wait $!
        code=$?
        [ "$signals" = "$before" ] && break  # otherwise a signal ended the wait, not the run
    done
}}
"""

_END = """\
while :; do
    run_once
    case $code in
        0 | {stopped} | {user_error}) break ;;  # done, stopped, or a setting that stays wrong
    esac
    diablo-ds explain "$log_folder"
    first=$?
    case $first in  # srun's own code says little: after TERM, or where several ranks ended
        0 | {stopped} | {user_error}) code=$first; break ;;
    esac
    if [ "$first" = {port_in_use} ] && [ "$port_tries" -lt {max_port_tries} ]; then
        port_tries=$((port_tries + 1))
        echo "The master port was taken meanwhile; starting again."
    elif [ "$restarts" -lt {max_restarts} ]; then
        restarts=$((restarts + 1))
        echo "Restart $restarts of {max_restarts}, from the last checkpoint."
    else
        break
    fi
    attempt=$((attempt + 1))
done
{requeue}exit $code
"""

_REQUEUE = """\
# scancel ends a run in the same way, but then the job does not count as running any more.
if [ "$code" = {stopped} ] && [ "$(squeue -h -j "$SLURM_JOB_ID" -t RUNNING -o %T)" = RUNNING ]; then
    echo "Stopped and saved; back into the queue."
    scontrol requeue "$SLURM_JOB_ID"
fi
"""
