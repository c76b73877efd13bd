"""The options of a run, as every command that starts one takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diablo_ds.cli.options import from_options, given_values, options_of
from diablo_ds.config.batch_sizes import MOST_MICRO_BATCH
from diablo_ds.config.choices import DS_CONFIGS
from diablo_ds.config.continuation import left_out_values
from diablo_ds.config.remote_code import trust_code
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import FileSettings, load_settings
from diablo_ds.config.setting import check_settings, setting, settings_of
from diablo_ds.config.sharing import share_files
from diablo_ds.config.starts import BY_COMMAND_ALONE
from diablo_ds.config.written_config import config_text
from diablo_ds.errors import UserError

_RIVALS = (
    ("num_epochs", "max_steps"),
    ("micro_batch", "micro_batch_tokens"),
    ("micro_batch_tokens", "micro_batch"),
)
"""An option, and the setting of a file that would act in its place, or contradict it."""
_RECOMPUTATION = frozenset({"recompute", "recomputed_layers", "keep_attention"})
"""Settings that a run may have chosen together; one that is given replaces all of a record's."""
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
        on_resume="free",
    )
    config: Path | None = setting(
        None,
        "Run config file: JSON, YAML, or a run folder's; options override it.",
        "config files",
        on_resume="free",
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

    An option overrides the file, also where it goes under another name there: passes and steps, or
    the ways to give the batch sizes. What a run recorded of its micro batch holds where it divides,
    and of recomputation where the options say nothing of it.
    Where the output folder holds a run, what is left out is as that run has it, but for settings
    that may change freely. Files are made for whom it says from then on.

    Args:
        values: parameters of a command with `run_options`.
        world_size: ranks of the run, which gradient_accumulation_steps is for.

    Raises:
        UserError: if the file or a value is wrong.
    """
    given, file = given_values(RunConfig, values), _file_settings(values)
    accumulation = find_accumulation(values)
    settings = dict(file.settings)
    if from_options(RunFiles, values).gradient_accumulation_steps is not None:
        settings.pop("global_batch", None)
    for name, rival in _RIVALS:
        if given.get(name) and rival not in given:
            settings.pop(rival, None)
    if file.is_record and given.keys() & (_RECOMPUTATION | {"memory_budget", "reentrant"}):
        for name in _RECOMPUTATION:
            settings.pop(name, None)
    settings |= given
    if accumulation is not None:
        settings["global_batch"] = _global_batch(settings, accumulation, world_size)
    elif file.is_record and "micro_batch" not in given and not _divides(settings, world_size):
        settings.pop("micro_batch", None)
    run_config = RunConfig(**(_left_out(settings) | settings))
    share_files(run_config)
    trust_code(run_config)
    return run_config


def _left_out(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that were not given, as the run has them that the output folder holds."""
    from diablo_ds.training.run_folder import recorded_config

    recorded = recorded_config(str(settings.get("output", "")))
    return {} if recorded is None else left_out_values(recorded, settings)


def find_accumulation(values: Mapping[str, Any]) -> int | None:
    """Return the micro batches per rank and step, where they are given and decide the global batch.

    Args:
        values: parameters of a command with `run_options`.

    Raises:
        UserError: if the run config file is wrong.
    """
    given = from_options(RunFiles, values).gradient_accumulation_steps
    if given is not None or given_values(RunConfig, values).get("global_batch"):
        return given
    return _file_settings(values).gradient_accumulation_steps


def settings_text(values: Mapping[str, Any], world_size: int) -> str:
    """Return the settings that a command was given as a commented file for `--config`.

    What the number of ranks decides, or a start, is left open.

    Args:
        values: parameters of a command with `run_options`.
        world_size: ranks of the run.

    Raises:
        UserError: if a file or a value is wrong.
    """
    run_config = build_run_config(values, world_size)
    settings = [s for cls in (RunFiles, RunConfig) for s in settings_of(cls) if s.name != "config"]
    settings = [s for s in settings if s.name not in BY_COMMAND_ALONE]
    written = {s.name: getattr(run_config, s.name) for s in settings_of(RunConfig)}
    if (ds_config := find_ds_config(values)) != DEFAULT_DS_CONFIG:
        written["ds_config"] = str(ds_config)
    if (accumulation := find_accumulation(values)) is not None:
        written["gradient_accumulation_steps"] = accumulation
        del written["global_batch"]
    return config_text(settings, written)


def find_ds_config(values: Mapping[str, Any]) -> Path:
    """Return the DeepSpeed config file: as given, else as the run config file has it.

    Args:
        values: parameters of a command with `run_options`.

    Raises:
        UserError: if the run config file is wrong.
    """
    if "ds_config" in given_values(RunFiles, values):
        return from_options(RunFiles, values).ds_config
    return _file_settings(values).ds_config or DEFAULT_DS_CONFIG


def _file_settings(values: Mapping[str, Any]) -> FileSettings:
    config = from_options(RunFiles, values).config
    return FileSettings({}) if config is None else load_settings(config)


def _global_batch(settings: Mapping[str, Any], accumulation: int, world_size: int) -> int:
    if settings.get("global_batch"):
        raise UserError(
            "give global_batch or gradient_accumulation_steps, not both; got "
            f"global_batch={settings['global_batch']}, gradient_accumulation_steps={accumulation}"
        )
    if settings.get("micro_batch_tokens"):
        raise UserError(
            "gradient_accumulation_steps has no effect with micro_batch_tokens, where the number "
            "of micro batches varies; got both; give global_batch instead"
        )
    return int(settings.get("micro_batch") or MOST_MICRO_BATCH) * accumulation * world_size


def _divides(settings: Mapping[str, Any], world_size: int) -> bool:
    """Return whether the micro batches of all ranks make up the global batch."""
    per_micro_step = settings.get("micro_batch", 0) * world_size
    return not per_micro_step or settings.get("global_batch", 0) % per_micro_step == 0
