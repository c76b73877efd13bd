"""The options of a run, as every command that starts one takes them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from diablo_ds.config.batch_sizes import MOST_MICRO_BATCH
from diablo_ds.config.choices import DS_CONFIGS
from diablo_ds.config.run import OPEN_SETTINGS, RunConfig
from diablo_ds.errors import UserError

DEFAULT_DS_CONFIG = DS_CONFIGS / "zero3.json"
_FILES = (
    click.option(
        "--ds-config",
        type=click.Path(path_type=Path),
        default=DEFAULT_DS_CONFIG,
        help="DeepSpeed config file: ZeRO stage, offload, communication.  [default: zero3.json]",
    ),
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        help="Run config file (JSON); options override it.",
    ),
    click.option(
        "--gradient-accumulation-steps",
        type=click.IntRange(min=1),
        help="Micro batches per rank and step; sets the global batch for this world size.",
    ),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the files of a run, and one option for each field of the run config."""
    types = typing.get_type_hints(RunConfig)
    for field in reversed(dataclasses.fields(RunConfig)):
        name, help_text = field.name.replace("_", "-"), field.metadata["help"]
        wanted, choices = types[field.name], field.metadata["choices"]
        is_flag = wanted is bool or bool in typing.get_args(wanted)
        many = typing.get_origin(wanted) is tuple
        declaration = f"--{name}/--no-{name}" if is_flag else f"--{name}"
        default = "open" if OPEN_SETTINGS.get(field.name) == 0 else field.default
        shown = "" if many or default in ("", None) else f"  [default: {default}]"
        command = click.option(
            declaration,
            field.name,
            type=click.Choice(choices) if choices else str if many else None if is_flag else wanted,
            default=None,
            multiple=many,
            help=help_text + shown,
        )(command)
    for option in reversed(_FILES):
        command = option(command)
    return command


def build_run_config(
    file: Path | None,
    options: dict[str, Any],
    gradient_accumulation_steps: int | None,
    world_size: int,
) -> RunConfig:
    """Build the run config from a file and the options that were given.

    Args:
        file: run config file, or none.
        options: values by field name; None or () for one that was not given.
        gradient_accumulation_steps: micro batches per rank and step, or none.
        world_size: ranks of the run, which these make a global batch of.

    Raises:
        UserError: if the file or a value is wrong.
    """
    base = RunConfig() if file is None else RunConfig.load(file)
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if gradient_accumulation_steps is not None:
        if given.get("global_batch"):
            raise UserError(
                "give global_batch or gradient_accumulation_steps, not both; got "
                f"global_batch={given['global_batch']}, "
                f"gradient_accumulation_steps={gradient_accumulation_steps}"
            )
        if given.get("micro_batch_tokens", base.micro_batch_tokens):
            raise UserError(
                "gradient_accumulation_steps has no effect with micro_batch_tokens, where the "
                "number of micro batches varies; got both; give global_batch instead"
            )
        micro_batch = given.get("micro_batch", base.micro_batch) or MOST_MICRO_BATCH
        given["global_batch"] = micro_batch * gradient_accumulation_steps * world_size
    return dataclasses.replace(base, **given)
