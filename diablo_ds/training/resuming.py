"""Where a run goes on: its folder, owned by rank 0, and the checkpoint that fits it."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from diablo_ds.adapter.layer import delta_shapes
from diablo_ds.adapter.storage import AdapterConfig, check_adapter
from diablo_ds.config.run import RunConfig
from diablo_ds.data.batches import BatchSource
from diablo_ds.data.identity import DataIdentity, identify, reconcile
from diablo_ds.data.streaming import StreamSource
from diablo_ds.errors import UserError
from diablo_ds.files.layout import RunFolder
from diablo_ds.files.ownership import FolderOwner
from diablo_ds.ranks import distributed
from diablo_ds.ranks.log import logger
from diablo_ds.training.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from diablo_ds.training.content_checks import check_tensors
from diablo_ds.training.run_folder import own_run_folder


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
    config: RunConfig, folder: Path, adapter_config: AdapterConfig, shapes: Any
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
                raise UserError(
                    f"checkpoint must have the run's {name}={getattr(config, name)}; got "
                    f"{name}={getattr(checkpoint, name)} in {path}"
                )
        if checkpoint.adapter.num_blocks == adapter_config.num_blocks:  # else it is refused below
            wanted = delta_shapes(shapes, adapter_config.num_blocks)
            check_tensors(checkpoint.masters, wanted, path)
        if checkpoint.data is not None:
            DataIdentity.from_json(checkpoint.data, checkpoint.step, path)
        loaded[path] = checkpoint
        return checkpoint

    found, problems = distributed.on_main_process(
        lambda: find_checkpoint(RunFolder(folder).checkpoints, load)
    )
    for problem in problems:
        logger.warning(f"Passing over a damaged checkpoint: {problem}")
    if found is None:
        return None
    checkpoint = distributed.on_every_rank(lambda: loaded.get(found) or load(found))
    try:
        check_adapter(checkpoint.adapter, adapter_config)
    except ValueError as error:
        raise UserError(
            f"{error}; to resume, put the model back as it was; for a new run, choose another "
            "--output"
        ) from None
    logger.info(f"Resuming after step {checkpoint.step} from {found}")
    return checkpoint


def place_data(
    config: RunConfig,
    train: BatchSource | StreamSource,
    heldout: BatchSource | None,
    checkpoint: Checkpoint | None,
) -> tuple[BatchSource | StreamSource, DataIdentity, int]:
    """Compare the data with those of the checkpoint, and find where the run goes on in them.

    Collective: every rank must call this.

    Args:
        config: the run config.
        train: training data.
        heldout: held-out data, if any.
        checkpoint: where the run goes on, if anywhere.

    Returns:
        The training data as the run takes them, their identity, and the steps of the whole run.

    Raises:
        UserError: if they changed without `allow_changed_data`, or hosts see different data.
    """
    is_first = distributed.local_rank() == 0
    mine = distributed.on_every_rank(lambda: identify(config, train, heldout) if is_first else None)
    found = distributed.gather_objects((distributed.host_name(), mine))
    first_host, identity = found[0]
    assert identity is not None
    for host, other in found:
        if other is not None and other != identity:
            raise UserError(
                f"data must be the same on every host; got others on {host} than on {first_host}, "
                f"data={config.data!r}"
            )
    step = 0 if checkpoint is None else checkpoint.step
    if checkpoint is not None and checkpoint.data is None:
        logger.info("An older version wrote the checkpoint: whether the data changed is not known")
    elif checkpoint is not None and checkpoint.data is not None:
        old = DataIdentity.from_json(checkpoint.data, step, Path())
        identity, change = reconcile(old, identity, config, step)
        if change:
            logger.warning(change)
    source, num_steps = _from_step(config, train, identity)
    if step > num_steps:
        logger.warning(
            f"The run has taken {step} steps already, and its data or settings make {num_steps}: "
            "it ends here"
        )
    return source, identity, max(num_steps, step)


def _from_step(
    config: RunConfig, train: BatchSource | StreamSource, identity: DataIdentity
) -> tuple[BatchSource | StreamSource, int]:
    """Return the training data with their passes from a step on, and the steps of the run."""
    start = identity.start_step
    if start:
        left = max(config.max_steps - start, 0)
        if config.max_steps and not left:
            return train, start
        config = dataclasses.replace(config, num_epochs=identity.passes, max_steps=left)
        train = dataclasses.replace(train, run_config=config, start_step=start)
    if isinstance(train, StreamSource):
        return train, start + config.max_steps
    return train, start + config.num_steps(len(train))
