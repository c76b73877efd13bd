"""What made a run, written to its `run.json` at each start."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from diablo_ds import __version__
from diablo_ds.config.given_file import keep_given_file
from diablo_ds.config.run_files import DS_CONFIG
from diablo_ds.config.starts import Change, StartRecord, changed_settings, changed_values
from diablo_ds.conversion.public_names import base_hub_name
from diablo_ds.files.atomic import read_json
from diablo_ds.files.hub import revision_of, used_revisions
from diablo_ds.files.layout import RunFolder
from diablo_ds.ranks import distributed
from diablo_ds.ranks.masking import COMMAND, given_command
from diablo_ds.ranks.software import installed_versions
from diablo_ds.ranks.source_commit import find_commit
from diablo_ds.training.plan_estimate import estimate_plan
from diablo_ds.training.preparing import Prepared
from diablo_ds.training.resuming import Position
from diablo_ds.training.run_folder import record_run

_COUNTS = ("fingerprint", "examples", "tokens", "sequences")


def record_start(
    prepared: Prepared, position: Position, folder: Path, given_file: Path | None
) -> Mapping[str, float] | None:
    """Add this start to the run's `run.json`, and keep the file of settings that it was given.

    Collective: every rank must call this.

    Args:
        prepared: the run.
        position: where it begins or continues.
        folder: the run folder, owned by rank 0.
        given_file: the file of settings that a person gave.

    Returns:
        What a plan expects of the run; see `estimate_plan`.

    Raises:
        UserError: if the folder cannot be written, or the file cannot be read any more.
    """
    places = distributed.gather_values((distributed.host_name(), _device_name()))

    def record() -> Mapping[str, float] | None:
        start = _describe_start(prepared, position, folder, places)
        record_run(
            folder,
            prepared.run_config,
            start,
            ds_config=prepared.policy,
            parent=prepared.adapter.parent,
        )
        if given_file is not None:
            keep_given_file(given_file, folder)
        return start.plan

    return distributed.on_main_process(record)


def _describe_start(
    prepared: Prepared, position: Position, folder: Path, places: list[tuple[str, str]]
) -> StartRecord:
    run_config, world_size = prepared.run_config, distributed.world_size()
    commit, is_modified = find_commit()
    accumulation = run_config.accumulation_steps(world_size)
    return StartRecord(
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        command=os.environ.get(COMMAND) or given_command(),
        working_folder=str(Path.cwd()),
        version=__version__,
        commit=commit,
        is_modified=is_modified,
        hosts=tuple(
            {"name": host, "ranks": ranks, "device": device}
            for (host, device), ranks in Counter(places).items()
        ),
        world_size=world_size,
        gradient_accumulation_steps=None if run_config.micro_batch_tokens else accumulation,
        start_step=position.start_step,
        changes=_changes(prepared, folder),
        ds_config_file=str(prepared.ds_config_file),
        ds_config=prepared.design.ds_config,
        library_versions=_library_versions(),
        plan=estimate_plan(
            run_config,
            prepared.machines,
            prepared.base.shapes,
            prepared.policy,
            prepared.design.num_blocks,
        ),
        model=_model(prepared),
        data={
            name: part and {key: part[key] for key in _COUNTS if key in part}
            for name, part in (("train", position.data.train), ("heldout", position.data.heldout))
        },
        hub=used_revisions(),
    )


def _changes(prepared: Prepared, folder: Path) -> tuple[Change, ...]:
    """Return what differs from the start before; nothing for the first one."""
    if prepared.recorded is None:
        return ()
    changes = changed_settings(prepared.recorded, prepared.run_config)
    before = read_json(RunFolder(folder).run_config).get(DS_CONFIG)
    if isinstance(before, dict):  # earlier versions did not write it
        changes += changed_values(before, prepared.policy, DS_CONFIG)
    return changes


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _library_versions() -> dict[str, str]:
    cuda: Mapping[str, str | None] = {"cuda": torch.version.cuda, "rocm": torch.version.hip}
    return {**installed_versions(), **{name: v for name, v in cuda.items() if v is not None}}


def _model(prepared: Prepared) -> dict[str, Any]:
    base, adapter = prepared.base.folder, prepared.adapter
    hub_id = base_hub_name(adapter.base_model)
    return {
        "id": hub_id or None,
        "revision": revision_of(base) or None,
        "path": str(base.absolute()),
        "fingerprint": adapter.base_fingerprint,
    }
