"""The command `diablo-ds slurm`: options to a batch script, and its submission."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from diablo_ds import __version__
from diablo_ds.cli.console import CONTEXT, clean_errors
from diablo_ds.cli.looking import explain, renamed, status
from diablo_ds.cli.options import GroupedGroup, from_options, options_of
from diablo_ds.cli.run_options import RunFiles, build_run_config, find_ds_config, run_options
from diablo_ds.cli.run_start import warn_of_secrets, with_global_batch, with_output
from diablo_ds.cli.same_command import given_command
from diablo_ds.config.given_file import keep_given_file
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import read_ds_config
from diablo_ds.config.setting import check_settings, setting, settings_of
from diablo_ds.errors import UserError
from diablo_ds.files import owned
from diablo_ds.files.atomic import write_text
from diablo_ds.files.layout import LOGS_FOLDER, RunFolder
from diablo_ds.launcher.cluster import interface_env
from diablo_ds.launcher.job import Job
from diablo_ds.launcher.node_share import find_nodes, node_request
from diablo_ds.launcher.slurm import Origin, build_script
from diablo_ds.launcher.submission import submit
from diablo_ds.ranks.environment import MASK, RankVariables, parse_env
from diablo_ds.training.extending import describe_done
from diablo_ds.training.run_folder import recorded_config


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
    dry_run: bool = setting(False, "Print the script; check and write nothing.", "start")
    no_check: bool = setting(
        False, "Write the script where this machine cannot see data or model.", "start"
    )

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
        ds_config = find_ds_config(values)
        low, high = job.node_range()
        world_sizes = [nodes * job.slots for nodes in range(low, high + 1)]
        asked = build_run_config(values, world_sizes[-1])
        run_config = with_output(asked, reserve=False, for_later=True)
        if done := describe_done(run_config):
            click.echo(done)
            return
        swept, _, runs = job.sweep_runs(run_config)
        if swept not in ("micro_batch", "global_batch"):  # of which each run has its own
            run_config = with_global_batch(run_config, ds_config, world_sizes)
        variables = parse_env(job.env)
        warn_of_secrets(variables)
        if not (script.submit or script.dry_run):
            _refuse_written_out(variables)
        read_ds_config(ds_config)  # the ranks look into it; here at least it must be there
        request = node_request(job, find_nodes(job.partition))
        click.echo(request.text, err=True)
        if not (script.no_check or script.dry_run):
            # Without a sweep, and in one over numbers, all runs have the same inputs.
            kind = next((s.kind for s in settings_of(RunConfig) if s.name == swept), float)
            for each in runs[: 1 if kind is float or swept == "seed" else len(runs)]:
                _check_inputs(each, ds_config)
        if not script.dry_run:
            reserved = with_output(asked, reserve=True, for_later=True).output
            run_config = replace(run_config, output=reserved)
            if (given_file := from_options(RunFiles, values).config) is not None:
                keep_given_file(given_file, Path(reserved))
        file = script.file or RunFolder(Path(run_config.output)).logs / "job.sbatch"
        text = build_script(
            run_config,
            ds_config,
            job,
            {**interface_env(job.interface), **variables.shown},
            Path.cwd(),
            request=request,
            inherited=tuple(variables.hidden),
            recorded=recorded_config(run_config.output),
            origin=Origin(
                command=given_command(),
                version=__version__,
                date=datetime.now().astimezone().isoformat(" ", "seconds"),
                file=file.absolute(),
            ),
        )
        if script.dry_run:
            click.echo(text)
            return
        _write(text, file, run_config)
        if script.submit:
            numbers = submit(file, job, variables.hidden)
            click.echo(f"Submitted: {', '.join(map(str, numbers))}")
        else:
            click.echo(f"Submit: {shlex.join(['sbatch', str(file)])}")
        click.echo(f"Status: {shlex.join(['diablo-ds', 'status', run_config.output])}")


def _check_inputs(run_config: RunConfig, ds_config: Path) -> None:
    """Check settings, model and data as the ranks will, but for what their machines must have.

    Raises:
        UserError: if one is wrong; says how to do without this check.
    """
    click.echo("Checking model, data and settings.", err=True)
    repair = "give --no-check where this machine cannot see what the nodes see"
    try:
        from diablo_ds.training.preparing import check_inputs
    except ImportError as error:
        raise UserError(
            f"checking model and data needs the training packages; got {error}; {repair}"
        ) from None
    try:
        check_inputs(run_config, ds_config)
    except UserError as error:
        raise UserError(f"{error}; {repair}") from None


def _write(text: str, file: Path, run_config: RunConfig) -> None:
    """Write the script, and make the folder of the job's log."""
    logs = RunFolder(Path(run_config.output)).logs
    # SLURM drops a job that cannot write its output.
    for path, what in ((logs.parent, "run folder"), (logs, "log folder")):
        owned.make_folder(path, what)
    owned.make_parents(file)
    write_text(file, text)
    click.echo(f"Wrote {file}")


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
