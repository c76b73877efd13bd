"""Where a run goes on: its folder, owned by rank 0, and the checkpoint that fits it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from diablo_ds import adapter, distributed
from diablo_ds.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from diablo_ds.config import RunConfig
from diablo_ds.content_checks import check_tensors
from diablo_ds.layers import delta_shapes
from diablo_ds.metrics import logger
from diablo_ds.ownership import FolderOwner
from diablo_ds.run_folder import checkpoints_folder, own_run_folder


def own_folder(
    config: RunConfig, resources: contextlib.ExitStack
) -> tuple[Path, FolderOwner | None]:
    """Make rank 0 the owner of the run folder until ``resources`` are closed. Collective.

    Returns:
        The folder and, on rank 0, its owner.
    """
    owners: list[FolderOwner] = []

    def own() -> Path:
        owner = own_run_folder(config)
        resources.callback(owner.release)
        owners.append(owner)
        return owner.folder

    folder = distributed.on_main_process(own)
    return folder, owners[0] if owners else None


def find_resume_point(
    config: RunConfig, folder: Path, adapter_config: adapter.AdapterConfig, shapes: Any
) -> Checkpoint | None:
    """Load the latest checkpoint that is whole and fits the run. Collective.

    Args:
        config: the run config.
        folder: the run folder.
        adapter_config: target layers and block counts of the run.
        shapes: the base model on the meta device.
    """
    loaded: dict[Path, Checkpoint] = {}

    def load(path: Path) -> Checkpoint:
        checkpoint = load_checkpoint(path)
        for name in ("global_batch", "seed"):
            if getattr(checkpoint, name) != getattr(config, name):
                raise ValueError(
                    f"checkpoint must have the run's {name}={getattr(config, name)}; got "
                    f"{name}={getattr(checkpoint, name)} in {path}"
                )
        if checkpoint.adapter.num_blocks == adapter_config.num_blocks:  # else it is refused below
            wanted = delta_shapes(shapes, adapter_config.num_blocks)
            check_tensors(checkpoint.masters, wanted, path)
        loaded[path] = checkpoint
        return checkpoint

    found, problems = distributed.on_main_process(
        lambda: find_checkpoint(checkpoints_folder(folder), load)
    )
    for problem in problems:
        logger.warning(f"Passing over a damaged checkpoint: {problem}")
    if found is None:
        return None
    checkpoint = distributed.on_every_rank(lambda: loaded.get(found) or load(found))
    adapter.check_adapter(checkpoint.adapter, adapter_config)
    logger.info(f"Resuming after step {checkpoint.step} from {found}")
    return checkpoint
