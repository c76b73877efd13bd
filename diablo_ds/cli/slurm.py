"""The command `diablo-ds slurm`: options to a batch script, and its submission."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from diablo_ds.cli.console import CONTEXT, clean_errors
from diablo_ds.cli.looking import explain, renamed, status
from diablo_ds.cli.options import GroupedGroup, from_options, options_of
from diablo_ds.cli.run_options import RunFiles, build_run_config, run_options
from diablo_ds.cli.run_start import warn_of_secrets, with_global_batch, with_output
from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import check_settings, setting
from diablo_ds.errors import UserError
from diablo_ds.files import trust
from diablo_ds.files.atomic import read_json, write_text
from diablo_ds.files.layout import LOGS_FOLDER, RunFolder
from diablo_ds.launcher.cluster import interface_env
from diablo_ds.launcher.job import Job
from diablo_ds.launcher.slurm import build_script, submit
from diablo_ds.ranks.environment import MASK, RankVariables, parse_env


@dataclass(frozen=True, kw_only=True)
class ScriptOptions:
    """What is done with a batch script.

    Raises:
        UserError: if a value is illegal.
    """

    file: Path | None = setting(
        None,
        "The batch script.",
        "start",
        shown_default=f"{LOGS_FOLDER}/job.sbatch in the run folder",
    )
    submit: bool = setting(False, "Submit it to SLURM too.", "start")
    dry_run: bool = setting(False, "Print the script; write nothing.", "start")

    def __post_init__(self) -> None:
        check_settings(self)


@click.group(cls=GroupedGroup, context_settings=CONTEXT, invoke_without_command=True)
@options_of(Job)
@options_of(ScriptOptions)
@run_options
@click.pass_context
def slurm(context: click.Context, /, **values: Any) -> None:
    """Write a SLURM batch script for a run, and submit it.

    All options of `diablo-ds train` go with it. The job saves ahead of its time limit and when
    preempted, goes back into the queue, and resumes at the exact next step.
    """
    if context.invoked_subcommand is not None:
        return
    with clean_errors():
        job, script = from_options(Job, values), from_options(ScriptOptions, values)
        ds_config = from_options(RunFiles, values).ds_config
        low, high = job.node_range()
        world_sizes = [nodes * job.slots for nodes in range(low, high + 1)]
        run_config = build_run_config(values, world_sizes[-1])
        run_config = with_output(run_config, reserve=not script.dry_run, for_later=True)
        swept, _, _ = job.sweep_runs(run_config)
        if swept not in ("micro_batch", "global_batch"):  # of which each run has its own
            run_config = with_global_batch(run_config, ds_config, world_sizes)
        variables = parse_env(job.env)
        warn_of_secrets(variables)
        if not (script.submit or script.dry_run):
            _refuse_written_out(variables)
        read_json(ds_config)  # the ranks look into it; here at least it must be there
        text = build_script(
            run_config,
            ds_config,
            job,
            {**interface_env(job.interface), **variables.shown},
            Path.cwd(),
            inherited=tuple(variables.hidden),
        )
        if script.dry_run:
            click.echo(text)
            return
        file = _write(text, script.file, run_config)
        if script.submit:
            numbers = submit(file, job, variables.hidden)
            click.echo(f"Submitted: {', '.join(map(str, numbers))}")
        else:
            click.echo(f"Submit: {shlex.join(['sbatch', str(file)])}")
        click.echo(f"Status: diablo-ds status {run_config.output}")


def _write(text: str, file: Path | None, run_config: RunConfig) -> Path:
    """Write the script, and make the folder of the job's log; return the script's path."""
    logs = RunFolder(Path(run_config.output)).logs
    # SLURM drops a job that cannot write its output.
    for path, what in ((logs.parent, "run folder"), (logs, "log folder")):
        trust.make_folder(path, what, shared=run_config.shared_folders)
    file = file or logs / "job.sbatch"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
    click.echo(f"Wrote {file}")
    return file


def _refuse_written_out(variables: RankVariables) -> None:
    """Raise UserError for a secret that only a batch script could hold until it is submitted."""
    for name in variables.written_out:
        raise UserError(
            f"a secret must not be in a batch script; got env={name}={MASK}; export it where you "
            f"submit and give --env {name}, or add --submit"
        )


for _command in (status, explain):
    _name = str(_command.name)
    slurm.add_command(renamed(_command, _name, f"diablo-ds {_name}"))
