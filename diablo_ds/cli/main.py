"""The command `diablo-ds`: parses options, builds the config, calls one function."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from diablo_ds import __version__
from diablo_ds.cli.adapters import combine, diff, import_
from diablo_ds.cli.comparing import report, runs
from diablo_ds.cli.console import CONTEXT, clean_errors, echo, run_command
from diablo_ds.cli.evaluate import evaluate
from diablo_ds.cli.generate import generate
from diablo_ds.cli.launch import launch
from diablo_ds.cli.looking import explain, inspect, status
from diablo_ds.cli.merge import merge, verify
from diablo_ds.cli.options import GroupedCommand, check_words, from_options, options_of
from diablo_ds.cli.plan import plan
from diablo_ds.cli.prepare import prepare
from diablo_ds.cli.push import push
from diablo_ds.cli.run_options import (
    RunFiles,
    build_run_config,
    find_ds_config,
    run_options,
    settings_text,
)
from diablo_ds.cli.slurm import slurm
from diablo_ds.config.setting import check_settings, setting
from diablo_ds.errors import UserError
from diablo_ds.files import owned
from diablo_ds.files.settings_files import YAML_SUFFIXES
from diablo_ds.launcher.devices import check_devices
from diablo_ds.ranks.exit_codes import EXIT_STOPPED
from diablo_ds.ranks.heartbeat import DESCRIPTOR
from diablo_ds.ranks.identity import announce
from diablo_ds.ranks.terminal import unblocked
from diablo_ds.training.extending import describe_done


def entry_point() -> None:
    """Run the command `diablo-ds`."""
    run_command(main)


class _Main(click.Group):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words of a command line; see `click.Group.parse_args`."""
        check_words(ctx, args)
        return super().parse_args(ctx, args)


@click.group(cls=_Main, context_settings=CONTEXT)
@click.version_option(__version__)
def main() -> None:
    """Fine-tune large language models with DiaBlo on DeepSpeed."""


for _command in (
    prepare,
    plan,
    launch,
    slurm,
    status,
    runs,
    report,
    explain,
    inspect,
    evaluate,
    generate,
    merge,
    verify,
    combine,
    diff,
    import_,
    push,
):
    main.add_command(_command)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What `diablo-ds train` does with a run.

    Raises:
        UserError: if a value is illegal.
    """

    dry_run: bool = setting(
        False, "Print what would run, and train nothing.", "start", on_resume="free"
    )
    preview: int = setting(
        0,
        "Print the counts of the data and this many examples, with the tokens that carry loss in "
        "[[...]], and train nothing.",
        "start",
        minimum=0,
        on_resume="free",
    )

    write_config: Path | None = setting(
        None,
        "Write the settings to this new YAML file, with what each means, and train nothing.",
        "start",
        on_resume="free",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.write_config is not None and (self.dry_run or self.preview):
            raise UserError("give write_config alone, or dry_run or preview; got several")


@main.command(cls=GroupedCommand, context_settings=CONTEXT)
@options_of(TrainOptions)
@click.option("--local-rank", type=int, hidden=True, help="Set by DeepSpeed's launcher; not used.")
@run_options
def train(local_rank: int | None, **values: Any) -> None:
    """Train an adapter. Started by `deepspeed launch/train.py`, or alone for a single process."""
    with clean_errors():
        identity = announce()
        check_devices(os.environ, identity.local_size or 1)
        if identity.rank == 0:
            click.echo(identity.describe(), err=True)
        asked = from_options(TrainOptions, values)
        if asked.write_config is not None:
            if identity.rank == 0:
                _write_config(asked.write_config, settings_text(values, identity.world_size))
            return
        run_config = build_run_config(values, identity.world_size)
        ds_config = find_ds_config(values)
        if asked.preview:
            from diablo_ds.training.preview import preview_data

            echo(preview_data(run_config, asked.preview) if identity.rank == 0 else "")
            return
        if done := describe_done(run_config):
            echo(done)
            return
        if asked.dry_run:
            from diablo_ds.training.dry_run import describe_run

            echo(describe_run(run_config, ds_config))
            return
        from diablo_ds.ranks.log import in_rows
        from diablo_ds.ranks.stopping import Stopped
        from diablo_ds.training.train import train as train_function

        try:
            # A guard takes all output at once; without one nothing else does.
            with nullcontext() if DESCRIPTOR in os.environ else unblocked():
                given_file = from_options(RunFiles, values).config
                echo(train_function(run_config, ds_config, given_file).text())
        except Stopped as stop:
            echo(in_rows(str(stop)))
            sys.exit(EXIT_STOPPED)


def _write_config(path: Path, text: str) -> None:
    """Write a file of settings that must not exist yet.

    Raises:
        UserError: if it exists, its name is no YAML file's, or it cannot be written.
    """
    if path.suffix.lower() not in YAML_SUFFIXES:
        raise UserError(f"write_config must name a .yaml file; got write_config={str(path)!r}")
    try:
        owned.write_new_file(path, text.encode())
    except FileExistsError:
        raise UserError(
            f"write_config must name a new file; got write_config={str(path)!r}, which exists; "
            "remove it or name another"
        ) from None
    except OSError as error:
        raise UserError(f"write_config must be writable; got {error}") from None
    click.echo(f"Wrote {path}; start with --config {shlex.quote(str(path))}")
