"""The options of a run, as every command that starts one takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diablo_ds.cli.options import from_options, given_values, options_of
from diablo_ds.config.batch_sizes import MOST_MICRO_BATCH
from diablo_ds.config.choices import DS_CONFIGS
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import load_run_config
from diablo_ds.config.setting import check_settings, setting
from diablo_ds.errors import UserError

DEFAULT_DS_CONFIG = DS_CONFIGS / "zero3.json"


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The files that a run is made from, and what depends on its number of ranks.

    Raises:
        UserError: if a value is illegal.
    """

    ds_config: Path = setting(
        DEFAULT_DS_CONFIG,
        "DeepSpeed config file: ZeRO stage, offload, communication.",
        "config files",
        shown_default="zero3.json",
        free_on_resume=True,
    )
    config: Path | None = setting(
        None,
        "Run config file (JSON); options override it.",
        "config files",
        free_on_resume=True,
    )
    gradient_accumulation_steps: int | None = setting(
        None,
        "Micro batches per rank and step; sets the global batch for this world size.",
        "batch",
        minimum=1,
    )

    def __post_init__(self) -> None:
        check_settings(self)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of `RunFiles` and of the run config."""
    with_config = options_of(RunConfig, override_a_file=True)(command)
    return options_of(RunFiles)(with_config)


def build_run_config(values: Mapping[str, Any], world_size: int) -> RunConfig:
    """Build the run config from a file and the options that were given.

    Args:
        values: parameters of a command with `run_options`.
        world_size: ranks of the run, which gradient_accumulation_steps is for.

    Raises:
        UserError: if the file or a value is wrong.
    """
    files, given = from_options(RunFiles, values), given_values(RunConfig, values)
    base = RunConfig() if files.config is None else load_run_config(files.config)
    accumulation = files.gradient_accumulation_steps
    if accumulation is not None:
        if given.get("global_batch"):
            raise UserError(
                "give global_batch or gradient_accumulation_steps, not both; got "
                f"global_batch={given['global_batch']}, gradient_accumulation_steps={accumulation}"
            )
        if given.get("micro_batch_tokens", base.micro_batch_tokens):
            raise UserError(
                "gradient_accumulation_steps has no effect with micro_batch_tokens, where the "
                "number of micro batches varies; got both; give global_batch instead"
            )
        micro_batch = given.get("micro_batch", base.micro_batch) or MOST_MICRO_BATCH
        given["global_batch"] = micro_batch * accumulation * world_size
    return dataclasses.replace(base, **given)
