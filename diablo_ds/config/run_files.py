"""Run configs as JSON files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diablo_ds.config.choices import FORMER_CORPORA
from diablo_ds.config.run import RunConfig
from diablo_ds.config.starts import STARTS
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json, write_json
from diablo_ds.files.strict_json import key_list

_FORMER_NAMES = {
    "gradient_checkpointing": "recompute",
    "checkpointed_layers": "recomputed_layers",
}
"""Settings that earlier versions wrote under another name."""
_FORMER_MICRO_BATCH = 4
"""The default that earlier versions wrote beside `micro_batch_tokens`, where it had no effect."""
_FORMER_DELTA_PATHS = {"merged": "summed", "triton_merged": "triton_summed"}
"""Names that earlier versions gave to delta paths."""
PARENT = "parent"
"""Key of what a run's file records of the adapter that it started from; no setting."""
DS_CONFIG = "ds_config"
"""Key of the DeepSpeed config, as its file had it; no setting of the run config."""


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
    """Read a run config from a JSON file.

    Raises:
        UserError: if the file is missing, malformed, or holds an unknown key or an illegal value.
    """
    return parse_run_config(read_json(path), path)


def parse_run_config(values: Any, source: Path) -> RunConfig:
    """Build a run config from the content of a JSON file.

    Args:
        values: what the file holds, which may be anything.
        source: the file, for errors.

    Raises:
        UserError: if it is no object, a key is unknown or a value is illegal.
    """
    if not isinstance(values, dict):
        raise UserError(
            f"run config must be a JSON object; got {type(values).__name__} in {source}"
        )
    values = {
        _FORMER_NAMES.get(name, name): value
        for name, value in values.items()
        if name not in (PARENT, STARTS, DS_CONFIG)
    }
    known = {field.name for field in dataclasses.fields(RunConfig)}
    unknown = sorted(values.keys() - known)
    if unknown:
        raise UserError(
            f"run config must have known keys only; got {key_list(unknown)} in {source}; "
            f"known are {', '.join(sorted(known))}"
        )
    for name in ("targets", "column"):
        if isinstance(values.get(name), list):
            values = {**values, name: tuple(values[name])}
    if isinstance(corpus := values.get("corpus"), str):
        values = {**values, "corpus": FORMER_CORPORA.get(corpus, corpus)}
    if values.get("micro_batch_tokens") and values.get("micro_batch") == _FORMER_MICRO_BATCH:
        values = {**values, "micro_batch": 0}
    if isinstance(path := values.get("delta_path"), str):
        values = {**values, "delta_path": _FORMER_DELTA_PATHS.get(path, path)}
    return RunConfig(**values)
