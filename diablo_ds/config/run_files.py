"""Run configs as files: JSON, as a run writes it, and JSON or YAML, as a user does."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diablo_ds.config.choices import FORMER_CORPORA
from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import AUTO, Setting, option_name, settings_of
from diablo_ds.config.starts import BY_COMMAND_ALONE, STARTS
from diablo_ds.config.suggestion import did_you_mean
from diablo_ds.config.task_settings import DEFAULT_LIMIT
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json, write_json
from diablo_ds.files.hub import recorded_revisions, with_revision
from diablo_ds.files.settings_files import read_settings, settings_file
from diablo_ds.files.strict_json import check_texts, key_list

_FORMER_NAMES = {
    "gradient_checkpointing": "recompute",
    "checkpointed_layers": "recomputed_layers",
    "shared_folders": "allow_group_write",
}
"""Settings that earlier versions wrote under another name."""
_FORMERLY_ONE = ("data", "heldout_data", "eval_task_limit")
"""Settings of which earlier versions took one value."""
_OF_NUMBERS = ("eval_task_limit",)
"""Settings with several texts that may be numbers."""
_FORMER_MICRO_BATCH = 4
"""The default that earlier versions wrote beside `micro_batch_tokens`, where it had no effect."""
_FORMER_DELTA_PATHS = {"merged": "summed", "triton_merged": "triton_summed"}
"""Names that earlier versions gave to delta paths."""
_INPUTS = frozenset({"model", "data", "heldout_data", "init_adapter", "eval_task_data"})
"""Settings that name files to read."""
PARENT = "parent"
"""Key of what a run's file records of the adapter that it started from; no setting."""
DS_CONFIG = "ds_config"
"""Key of the DeepSpeed config, as its file had it; no setting of the run config. A user's file may
name the file instead."""
ACCUMULATION = "gradient_accumulation_steps"
"""Key of the micro batches per rank and step, which a user's file may give instead of the global
batch."""


def save_run_config(
    run_config: RunConfig,
    path: Path,
    parent: Mapping[str, Any] | None = None,
    *,
    ds_config: Mapping[str, Any] | None = None,
    starts: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a run config as JSON, atomically.

    Args:
        run_config: the run config.
        path: the file.
        parent: what is recorded of the adapter that the run started from, if any.
        ds_config: the values of the DeepSpeed config file.
        starts: what is recorded of the run's starts; see `diablo_ds.config.starts`.
    """
    values = dataclasses.asdict(run_config)
    if ds_config is not None:
        values[DS_CONFIG] = dict(ds_config)
    if parent is not None:
        values[PARENT] = dict(parent)
    if starts:
        values[STARTS] = list(starts)
    write_json(path, values)


def load_parent(path: Path) -> dict[str, Any] | None:
    """Return what a run's file records of the adapter that it started from, if anything.

    Raises:
        UserError: if the file is not JSON.
    """
    values = read_json(path) if path.is_file() else {}
    parent = values.get(PARENT) if isinstance(values, dict) else None
    return parent if isinstance(parent, dict) else None


def load_run_config(path: Path) -> RunConfig:
    """Read a run config from a file, JSON or YAML.

    Raises:
        UserError: if the file is missing, malformed, or holds an unknown key or an illegal value.
    """
    return parse_run_config(read_settings(path), path)


def load_recorded(path: Path) -> RunConfig:
    """Read a run's `run.json`; what earlier versions did not write is as it was then.

    Raises:
        UserError: if the file is missing, malformed, or holds an unknown key or bad value.
    """
    values = read_json(path)
    if isinstance(values, dict):
        values = {"data_order": "seed-plus-epoch", **values}
    return parse_run_config(values, path)


def parse_run_config(values: Any, source: Path) -> RunConfig:
    """Build a run config from the content of a file.

    Args:
        values: what the file holds, which may be anything.
        source: the file, for errors.

    Raises:
        UserError: if it is no object, a key is unknown or a value is illegal.
    """
    return RunConfig(**parse_settings(values, source).settings)


@dataclass(frozen=True)
class FileSettings:
    """What a file gives to a run."""

    settings: dict[str, Any]
    """Values of the run config, each legal by itself."""
    ds_config: Path | None = None
    """The DeepSpeed config file that it names, or itself where it holds the config."""
    gradient_accumulation_steps: int | None = None
    is_record: bool = False
    """Whether a run wrote it, with the values that were chosen for its ranks."""


def load_settings(path: Path) -> FileSettings:
    """Read what a file gives to a run: JSON, YAML, or the `run.json` of a run folder.

    Raises:
        UserError: if the file is missing, malformed, or holds an unknown key or an illegal value.
    """
    return parse_settings(read_settings(path), settings_file(path))


def parse_settings(values: Any, source: Path) -> FileSettings:
    """Return what the content of a file gives to a run.

    Names may have dashes or underscores.

    Args:
        values: what the file holds, which may be anything.
        source: the file.

    Raises:
        UserError: if it is no object, a key is unknown or a value is illegal.
    """
    if not isinstance(values, dict):
        raise UserError(f"run config must be an object; got {type(values).__name__} in {source}")
    values = _with_field_names(values, source)
    starts = values.pop(STARTS, None)
    values.pop(PARENT, None)
    ds_config, steps = values.pop(DS_CONFIG, None), values.pop(ACCUMULATION, None)
    if not isinstance(ds_config, dict | str | None) or ds_config == "":
        raise UserError(
            f"{DS_CONFIG} must be a DeepSpeed config or the path of its file; got {DS_CONFIG}="
            f"{ds_config!r:.60} in {source}"
        )
    if steps is not None and (type(steps) is not int or steps < 1):
        raise UserError(f"{ACCUMULATION} must be an integer >= 1; got {steps!r:.60} in {source}")
    _check_no_trust(values, source, is_record=bool(starts))
    settings = {setting.name: setting for setting in settings_of(RunConfig)}
    _check_known(values, {*settings, DS_CONFIG, ACCUMULATION}, source)
    values = _present_values({n: _typed(settings[n], value) for n, value in values.items()})
    for name, value in values.items():
        try:
            settings[name].check(value)
        except UserError as error:
            raise UserError(f"{error}, in {source}") from None
    named = Path(ds_config) if isinstance(ds_config, str) else None
    file = source if isinstance(ds_config, dict) else named
    return FileSettings(_found_inputs(values, starts), file, steps, bool(starts))


def _found_inputs(values: dict[str, Any], starts: Any) -> dict[str, Any]:
    """Return a record's values with inputs that are only found from where the run was started.

    What the run took from the hub is named with its revision.

    Args:
        values: settings by name.
        starts: the record's entries, which may be anything.
    """
    last = starts[-1] if isinstance(starts, list) and starts else None
    folder = last.get("working_folder") if isinstance(last, dict) else None
    if not isinstance(folder, str):
        return values
    revisions = recorded_revisions(starts)

    def found(text: str, kind: str) -> str:
        for name, equals, path in (("", "", text), text.partition("=")):  # a path, or NAME=PATH
            there = os.path.join(folder, path)
            if path and not os.path.exists(path) and os.path.exists(there):
                return f"{name}{equals}{there}"
        return with_revision(text, kind, revisions)

    result = dict(values)
    for name in _INPUTS & values.keys():
        value, kind = values[name], "model" if name == "model" else "dataset"
        if isinstance(value, tuple):
            result[name] = tuple(found(text, kind) for text in value)
        else:
            result[name] = found(value, kind)
    return result


def read_ds_config(path: Path) -> Any:
    """Return the content of a DeepSpeed config file, or that config in a run config file.

    Raises:
        UserError: if the file cannot be read, is neither JSON nor YAML, or holds control
            characters.
    """
    values = read_settings(path)
    if isinstance(values, dict):
        values = values.get(DS_CONFIG, values.get(DS_CONFIG.replace("_", "-"), values))
    check_texts(f"ds_config of {path}", values)
    return values


def _with_field_names(values: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Return values by the present names of fields, with underscores."""
    named: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        name = _FORMER_NAMES.get(name, name)
        if name in named:
            raise UserError(f"each setting must be given once; got {name} twice in {source}")
        named[name] = value
    return named


def _check_no_trust(values: dict[str, Any], source: Path, *, is_record: bool) -> None:
    """Take out of a record what no file may give; refuse it in a user's file."""
    for name in BY_COMMAND_ALONE:
        if values.pop(name, False) and not is_record:
            raise UserError(
                f"{name} must be given on the command line, since a file may be anybody's; got it "
                f"in {source}; remove it, and give {option_name(name)}"
            )


def _check_known(values: Mapping[str, Any], known: Collection[str], source: Path) -> None:
    unknown = sorted(values.keys() - known)
    if not unknown:
        return
    hint = did_you_mean(unknown[0], known) or f"; known are {', '.join(sorted(known))}"
    raise UserError(
        f"run config must have known keys only; got {key_list(unknown)} in {source}{hint}"
    )


def _typed(setting: Setting, value: Any) -> Any:
    """Return a value of JSON or YAML in the type of its setting, where it stands for one."""
    if setting.is_repeatable:
        values = value if isinstance(value, list) else [value]
        if setting.name in _OF_NUMBERS:
            values = list(map(_text_of, values))
        if isinstance(value, list):
            return tuple(values)
        is_one = setting.name in _FORMERLY_ONE and isinstance(values[0], str)
        return tuple(filter(None, values)) if is_one else value
    if setting.takes_auto and value == AUTO:
        return setting.default
    return _text_of(value) if setting.kind is str else value


def _text_of(value: Any) -> Any:
    """Return a number, which JSON and YAML know, as the text that it stands for."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number else value


def _present_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return values that earlier versions wrote as they are written now."""
    if isinstance(corpus := values.get("corpus"), str):
        values = {**values, "corpus": FORMER_CORPORA.get(corpus, corpus)}
    if values.get("micro_batch_tokens") and values.get("micro_batch") == _FORMER_MICRO_BATCH:
        values = {**values, "micro_batch": 0}
    if values.get("eval_task_limit") == (str(DEFAULT_LIMIT),):  # also of runs without tasks
        values = {**values, "eval_task_limit": ()}
    if isinstance(path := values.get("delta_path"), str):
        values = {**values, "delta_path": _FORMER_DELTA_PATHS.get(path, path)}
    return values
