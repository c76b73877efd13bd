"""The command `diablo-ds`: parses options, builds the config, calls one function."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from diablo_ds import __version__
from diablo_ds.config import RunConfig
from diablo_ds.console import CONTEXT, clean_errors, echo, run
from diablo_ds.exit_codes import EXIT_STOPPED
from diablo_ds.prepare.command import prepare

DEFAULT_DS_CONFIG = Path(__file__).parent.parent / "ds_configs" / "zero3.json"


def entry_point() -> None:
    """Run the command `diablo-ds`."""
    run(main)


@click.group(context_settings=CONTEXT)
@click.version_option(__version__)
def main() -> None:
    """Fine-tune large language models with DiaBlo on DeepSpeed."""


main.add_command(prepare)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one option for each field of the run config."""
    types = typing.get_type_hints(RunConfig)
    for field in reversed(dataclasses.fields(RunConfig)):
        name, help_text = field.name.replace("_", "-"), field.metadata["help"]
        wanted, choices = types[field.name], field.metadata["choices"]
        is_flag = wanted is bool or bool in typing.get_args(wanted)
        many = typing.get_origin(wanted) is tuple
        declaration = f"--{name}/--no-{name}" if is_flag else f"--{name}"
        shown = "" if many or field.default in ("", None) else f"  [default: {field.default}]"
        command = click.option(
            declaration,
            field.name,
            type=click.Choice(choices) if choices else str if many else None if is_flag else wanted,
            default=None,
            multiple=many,
            help=help_text + shown,
        )(command)
    return command


@main.command(context_settings=CONTEXT)
@click.option(
    "--ds-config",
    type=click.Path(path_type=Path),
    default=DEFAULT_DS_CONFIG,
    help="DeepSpeed config file: ZeRO stage, offload, communication.  [default: zero3.json]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Run config file (JSON); options override it.",
)
@click.option(
    "--gradient-accumulation-steps",
    type=click.IntRange(min=1),
    help="Micro batches per rank and step; sets the global batch for this world size.",
)
@click.option("--dry-run", is_flag=True, help="Print what would run, and train nothing.")
@click.option("--local-rank", type=int, hidden=True, help="Set by DeepSpeed's launcher; not used.")
@run_options
def train(
    ds_config: Path,
    config: Path | None,
    gradient_accumulation_steps: int | None,
    dry_run: bool,
    local_rank: int | None,
    **options: Any,
) -> None:
    """Train an adapter. Started by `deepspeed launch/train.py`, or alone for a single process."""
    with clean_errors():
        run = build_run_config(config, options, gradient_accumulation_steps)
        if dry_run:
            from diablo_ds.dry_run import describe_run

            echo(describe_run(run, ds_config))
            return
        from diablo_ds.stopping import Stopped
        from diablo_ds.train import train as train_function

        try:
            echo(train_function(run, ds_config).text())
        except Stopped as stop:
            echo(str(stop))
            sys.exit(EXIT_STOPPED)


@main.command(context_settings=CONTEXT)
@click.argument("path", type=click.Path(path_type=Path))
def inspect(path: Path) -> None:
    """Show what is in an adapter, a checkpoint or a run folder."""
    with clean_errors():
        from diablo_ds.inspection import describe

        echo(describe(path))


def build_run_config(
    file: Path | None, options: dict[str, Any], gradient_accumulation_steps: int | None = None
) -> RunConfig:
    """Build the run config from a file and the options that were given.

    Raises:
        ValueError: if the file or a value is wrong.
    """
    from diablo_ds.distributed import world_size

    base = RunConfig() if file is None else RunConfig.load(file)
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if gradient_accumulation_steps is not None:
        if "global_batch" in given:
            raise ValueError(
                "give global_batch or gradient_accumulation_steps, not both; got "
                f"global_batch={given['global_batch']}, "
                f"gradient_accumulation_steps={gradient_accumulation_steps}"
            )
        micro_batch = given.get("micro_batch", base.micro_batch)
        given["global_batch"] = micro_batch * gradient_accumulation_steps * world_size()
    return dataclasses.replace(base, **given)
