"""The command `diablo-ds`: parses options, builds the config, calls one function."""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from diablo_ds import __version__
from diablo_ds.config import RunConfig

DEFAULT_DS_CONFIG = Path(__file__).parent.parent / "ds_configs" / "zero3.json"
_CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    # Underscores and dashes are the same: --ds_config is what DeepSpeed users type.
    "token_normalize_func": lambda token: token.replace("_", "-"),
}


def run(command: click.Command) -> None:
    """Run a command as a whole process, and leave with its exit code.

    A rank leaves without shutting the interpreter down: with gloo's threads alive that aborts
    about one time in ten, after everything was written.
    """
    try:
        command()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def entry_point() -> None:
    """Run the command `diablo-ds`."""
    run(main)


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__)
def main() -> None:
    """Fine-tune large language models with DiaBlo on DeepSpeed."""


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


@main.command(context_settings=_CONTEXT)
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
        from diablo_ds.train import train as train_function

        echo(train_function(run, ds_config).text())


@main.command(context_settings=_CONTEXT)
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


def echo(text: str) -> None:
    """Print a result on rank 0."""
    from diablo_ds.distributed import is_main_process

    if is_main_process():
        click.echo(text)


class clean_errors:  # noqa: N801 - reads as a statement
    """Turn a user's mistake into a message without traceback, on rank 0, and exit code 1."""

    def __enter__(self) -> None:
        """Enter the block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        """Replace our own errors by a message; let everything else pass, with its traceback."""
        if error is not None and is_user_error(error):
            echo_error(str(error))
            sys.exit(1)


def is_user_error(error: BaseException) -> bool:
    """Return whether an error is one that this program raised for its user, or the system's.

    A ValueError out of another library is most likely a defect, and its traceback is needed.
    """
    if isinstance(error, OSError) or type(error).__name__ == "NonFiniteError":
        return True
    if not isinstance(error, ValueError) or error.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    file, package = Path(frame.f_code.co_filename), Path(__file__).parent
    return file.is_relative_to(package) or file.is_relative_to(package.parent / "data_prep")


def echo_error(text: str) -> None:
    """Print an error on rank 0's stderr."""
    from diablo_ds.distributed import is_main_process

    if is_main_process():
        click.echo(f"Error: {text}", err=True)
