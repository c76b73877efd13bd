"""The command `diablo-ds slurm`: options to a batch script, and its submission."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from diablo_ds.cli.console import CONTEXT, clean_errors
from diablo_ds.cli.launch import (
    ENV_HELP,
    max_restarts_option,
    warn_of_secrets,
    with_global_batch,
    with_output,
)
from diablo_ds.cli.looking import explain, renamed, status
from diablo_ds.cli.run_options import DEFAULT_DS_CONFIG, build_run_config, run_options
from diablo_ds.errors import UserError
from diablo_ds.files import trust
from diablo_ds.files.atomic import read_json, write_text
from diablo_ds.launcher.cluster import check_word, interface_env
from diablo_ds.launcher.job import Job
from diablo_ds.launcher.slurm import build_script, submit
from diablo_ds.ranks.environment import MASK, RankVariables, parse_env


@click.group(context_settings=CONTEXT, invoke_without_command=True)
@click.option("--name", default="diablo", show_default=True, help="Job name.")
@click.option("--nodes", default="1", show_default=True, help="How many, or a range: 2-4.")
@click.option("--gpus-per-node", type=click.IntRange(min=1), help="GPUs, and ranks, of each node.")
@click.option("--ranks-per-node", type=click.IntRange(min=1), help="The same on nodes without GPU.")
@click.option("--cpus-per-task", type=click.IntRange(min=1), help="CPUs of each node.")
@click.option("--partition", default="", help="Partition.")
@click.option("--account", default="", help="Account.")
@click.option("--time", default="", help="Time limit, e.g. 24:00:00.")
@click.option(
    "--warning-s",
    type=click.IntRange(min=1),
    default=120,
    show_default=True,
    help="Seconds before the limit to stop and save.",
)
@click.option(
    "--chain", type=click.IntRange(min=1), default=1, show_default=True, help="Jobs in a row."
)
@max_restarts_option
@click.option("--sweep", multiple=True, help="setting=value,value: an array job over the values.")
@click.option("--setup", multiple=True, help="Shell line before the run; repeatable.")
@click.option("--wrap", default="", help="Words before the command: apptainer exec --nv x.sif.")
@click.option("--sbatch-option", "options_", multiple=True, help="Further option; repeatable.")
@click.option("--master-addr", default="", help="Where rank 0 listens.  [default: first node]")
@click.option("--master-port", type=click.IntRange(0, 65535), help="[default: 0, any free one]")
@click.option("--interface", default="", help="Network interface for NCCL and Gloo.")
@click.option("--env", multiple=True, help=ENV_HELP)
@click.option("--file", type=click.Path(path_type=Path), help="[default: logs/job.sbatch]")
@click.option("--submit", "must_submit", is_flag=True, help="Hand it to SLURM too.")
@click.option("--dry-run", is_flag=True, help="Print the script; write nothing.")
@run_options
@click.pass_context
def slurm(
    context: click.Context,
    /,
    ds_config: Path | None,
    gpus_per_node: int | None,
    ranks_per_node: int | None,
    options_: tuple[str, ...],
    interface: str,
    env: tuple[str, ...],
    file: Path | None,
    must_submit: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Write a SLURM batch script for a run, and submit it.

    All options of `diablo-ds train` go with it. The job saves ahead of its time limit and when
    preempted, goes back into the queue, and resumes at the exact next step.
    """
    if context.invoked_subcommand is not None:
        return
    with clean_errors():
        if (gpus_per_node is None) == (ranks_per_node is None):
            raise UserError(
                "give gpus_per_node, or ranks_per_node on nodes without GPUs; got "
                f"gpus_per_node={gpus_per_node}, ranks_per_node={ranks_per_node}"
            )
        own = {f.name: options.pop(f.name) for f in fields(Job) if f.name in options}
        job = Job(
            **own,
            slots=gpus_per_node or ranks_per_node or 1,
            gpus=gpus_per_node is not None,
            options=options_,
        )
        low, high = job.node_range()
        world_sizes = [nodes * job.slots for nodes in range(low, high + 1)]
        run = build_run_config(options, world_sizes[-1])
        ds_config = ds_config or DEFAULT_DS_CONFIG
        run = with_output(run, reserve=not dry_run, for_later=True)
        swept, _, _ = job.sweep_runs(run)
        if swept not in ("micro_batch", "global_batch"):  # of which each run has its own
            run = with_global_batch(run, ds_config, world_sizes)
        check_word("interface", interface)
        variables = parse_env(env)
        warn_of_secrets(variables)
        if not (must_submit or dry_run):
            _refuse_written_out(variables)
        read_json(ds_config)  # the ranks look into it; here at least it must be there
        text = build_script(
            run,
            ds_config,
            job,
            {**interface_env(interface), **variables.shown},
            Path.cwd(),
            inherited=tuple(variables.hidden),
        )
        if dry_run:
            click.echo(text)
            return
        logs = Path(run.output) / "logs"
        # SLURM drops a job that cannot write its output.
        for path, what in ((logs.parent, "run folder"), (logs, "log folder")):
            trust.make_folder(path, what, shared=run.shared_folders)
        file = file or logs / "job.sbatch"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
        click.echo(f"Wrote {file}")
        if must_submit:
            numbers = submit(file, job, variables.hidden)
            click.echo(f"Submitted: {', '.join(map(str, numbers))}")
        else:
            click.echo(f"Submit: {shlex.join(['sbatch', str(file)])}")
        click.echo(f"Status: diablo-ds status {run.output}")


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
