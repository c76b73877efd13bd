"""All that a run reads, checks and decides before it loads weights; a dry run does the same.

Every rank does this together, where the ranks have joined. A dry run joins none, and stands for
all ranks by itself.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diablo_ds.adapter.layer_names import targets_of
from diablo_ds.adapter.storage import AdapterConfig
from diablo_ds.config.batch_resolution import resolve_batch
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import load_parent
from diablo_ds.files.hub import keep_revisions, revision_of
from diablo_ds.files.layout import RunFolder
from diablo_ds.model.base import Base, keep_apart, read_base
from diablo_ds.model.compile_cache import set_up_cache
from diablo_ds.model.finding import find_model, fingerprint, lasting_name
from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import heart
from diablo_ds.ranks.software import installed_versions
from diablo_ds.training.agreement import check_same_model
from diablo_ds.training.building import Design, design_model
from diablo_ds.training.evaluations import check_evaluated
from diablo_ds.training.initial_adapter import (
    InitialAdapter,
    load_initial_adapter,
    saved_num_blocks,
)
from diablo_ds.training.inputs import Inputs, load_inputs
from diablo_ds.training.machine import Machine, look_at_machines
from diablo_ds.training.resolution import Resolution, resolve_run
from diablo_ds.training.run_folder import choose_run_folder, find_initial_adapter, read_record
from diablo_ds.training.task_inputs import TaskInputs, find_tasks, read_tasks
from diablo_ds.zero import support
from diablo_ds.zero.ds_config import load_ds_config, zero_stage
from diablo_ds.zero.joining import import_deepspeed


@dataclass(frozen=True)
class Prepared:
    """A run before its weights are loaded and its folder is written to."""

    folder: Path
    """The run folder, as it would be chosen now."""
    resolution: Resolution
    """What was chosen for open settings, and why."""
    base: Base
    inputs: Inputs
    tasks: TaskInputs | None
    """What the model is asked while it is trained."""
    design: Design
    adapter: AdapterConfig
    initial: InitialAdapter | None
    """What the run starts from, where it has no checkpoint yet."""
    ds_config_file: Path
    policy: dict[str, Any]
    """The DeepSpeed config file's values."""
    recorded: RunConfig | None
    """The run config of the run that is continued."""
    machines: Sequence[Machine]
    """What each rank found, in the order of the ranks."""

    @property
    def run_config(self) -> RunConfig:
        """The run config without open values."""
        return self.design.run_config


@dataclass(frozen=True)
class _Settings:
    """What the user gave, the same on every rank."""

    run_config: RunConfig
    ds_config_file: Path
    policy: dict[str, Any]
    """The DeepSpeed config file's values."""
    recorded: RunConfig | None
    """The run config of the run that is continued."""
    device: torch.device


_MACHINES_OWN = ("precision", "delta_path", "attention", "compile", "memory_budget")
"""Fields whose values only the machines of the ranks can tell to be usable."""


def check_inputs(run_config: RunConfig, ds_config_file: Path) -> None:
    """Check settings, model and data on a machine that is not the ranks', such as a login node.

    What depends on their number, their GPUs or their disks is not checked.

    Raises:
        UserError: if a setting, file or folder is wrong.
    """
    import_deepspeed()
    defaults = RunConfig()
    own = {name: getattr(defaults, name) for name in _MACHINES_OWN}
    neutral = dataclasses.replace(run_config, **own)
    prepare_run(neutral, ds_config_file, torch.device("cpu"), is_here=False)


def prepare_run(
    run_config: RunConfig, ds_config_file: Path, device: torch.device, *, is_here: bool = True
) -> Prepared:
    """Check every setting, file and folder, and decide what they leave open.

    Collective, where the ranks have joined: every rank must call this.

    Args:
        run_config: the run config.
        ds_config_file: the DeepSpeed config file.
        device: this rank's device.
        is_here: whether the run is to be on this machine; otherwise what its machines must have is
            not checked.

    Raises:
        UserError: if a setting, file or folder is wrong; the same on every rank.
    """
    settings = _read_settings(run_config, ds_config_file, device, is_here=is_here)
    folder = distributed.on_main_process(
        lambda: choose_run_folder(run_config, for_later=not is_here)
    )
    base = _read_model(run_config)
    base_fingerprint = distributed.on_main_process(lambda: fingerprint(base.folder))
    initial = _read_initial(run_config, base, base_fingerprint)
    num_blocks, parent = _read_lineage(run_config, folder, initial)
    resolution, machines = _resolve(settings, base, num_blocks)
    run_config, separation = resolution.run_config, resolution.separation
    heart.beat("reading data")
    inputs = distributed.on_every_rank(lambda: load_inputs(run_config, base, separation))
    num_steps = inputs.train.num_steps
    check_evaluated(run_config, num_steps, has_heldout=inputs.heldout is not None)
    described = inputs.describe(run_config, distributed.world_size(), num_steps)
    distributed.check_same({"data": described}, "host")
    tasks = _read_tasks(run_config, base, inputs)
    design = design_model(
        run_config, base.shapes, settings.policy, ds_config_file, device.type, num_blocks
    )
    adapter = AdapterConfig(
        base_model=lasting_name(run_config.model),
        base_fingerprint=base_fingerprint,
        num_blocks=design.num_blocks,
        dropout=run_config.dropout,
        library_versions=installed_versions(),
        targets=targets_of(design.num_blocks, dict(base.shapes.named_modules())),
        parent=parent,
        revision=revision_of(base.folder) or None,
    )
    return Prepared(
        folder=folder,
        resolution=resolution,
        base=base,
        inputs=inputs,
        tasks=tasks,
        design=design,
        adapter=adapter,
        initial=initial,
        ds_config_file=ds_config_file,
        policy=settings.policy,
        recorded=settings.recorded,
        machines=machines,
    )


def _read_settings(
    run_config: RunConfig, ds_config_file: Path, device: torch.device, *, is_here: bool
) -> _Settings:
    """Read the DeepSpeed config file, and check what can be checked without a model."""
    policy = distributed.on_every_rank(lambda: load_ds_config(ds_config_file))
    given = {**dataclasses.asdict(run_config), "DeepSpeed config": json.dumps(policy)}
    distributed.check_same(given)
    distributed.on_every_rank(lambda: find_tasks(run_config))
    recorded, revisions = distributed.on_main_process(lambda: read_record(run_config.output))
    keep_revisions(revisions)
    resolve_batch(run_config, distributed.world_size(), recorded=recorded, policy=policy)

    def check_support() -> None:
        support.check_precision(run_config.precision, device.type, zero_stage(policy))
        support.check_offload(policy)
        support.check_quantized(policy, device.type)

    if is_here:
        distributed.on_every_rank(check_support)
    return _Settings(run_config, ds_config_file, policy, recorded, device)


def _read_model(run_config: RunConfig) -> Base:
    """Find the base model, the same one on every host, and read its config."""
    cache = run_config.cache_folder
    folder = distributed.on_each_host_first(lambda: find_model(run_config.model, cache))
    heart.beat("checking the model")
    check_same_model(folder)
    return read_base(folder)


def _read_initial(
    run_config: RunConfig, base: Base, base_fingerprint: str
) -> InitialAdapter | None:
    """Read the adapter that the run starts from, the same one on every host.

    Returns:
        None for a run that starts from none, or continues.
    """
    found = distributed.on_main_process(lambda: find_initial_adapter(run_config))
    if found is None:
        return None
    heart.beat("reading the initial adapter")
    initial = distributed.on_every_rank(
        lambda: load_initial_adapter(found, run_config, base.shapes, base_fingerprint)
    )
    distributed.check_same({f"adapter in {found} (its digest)": initial.digest[:12]}, "host")
    return initial


def _read_lineage(
    run_config: RunConfig, folder: Path, initial: InitialAdapter | None
) -> tuple[dict[str, int] | None, dict[str, Any] | None]:
    """Return the block count of each target layer, and the record of the initial adapter.

    They come from the initial adapter or, where the run continues, from what the run has of it;
    None where it started from no adapter.
    """
    if not run_config.init_adapter:
        return None, None
    if initial is not None:
        return initial.config.num_blocks, initial.lineage()
    files = RunFolder(folder)
    return distributed.on_main_process(
        lambda: (saved_num_blocks(files.checkpoints), load_parent(files.run_config))
    )


def _read_tasks(run_config: RunConfig, base: Base, inputs: Inputs) -> TaskInputs | None:
    """Read what the model is asked while it is trained, the same on every host."""
    if not run_config.eval_tasks:
        return None
    heart.beat("reading tasks")
    tasks = distributed.on_every_rank(lambda: read_tasks(run_config, base, inputs.ends.all))
    digests = {} if tasks is None else {t.task.name: t.digest[:12] for t in tasks.tasks}
    named = {f"data of the task {name} (their digest)": digest for name, digest in digests.items()}
    distributed.check_same(named, "host")
    return tasks


def _resolve(
    settings: _Settings, base: Base, num_blocks: dict[str, int] | None
) -> tuple[Resolution, Sequence[Machine]]:
    """Choose the settings that were left open, by the machines and the model."""
    machines = look_at_machines(settings.run_config, base.shapes, settings.device)
    resolution = resolve_run(
        settings.run_config,
        machines,
        base.shapes,
        recorded=settings.recorded,
        policy=settings.policy,
        num_blocks=num_blocks,
        try_apart=partial(keep_apart, base, asked=settings.run_config.attention),
    )
    if resolution.run_config.compile == "on":
        distributed.on_every_rank(lambda: set_up_cache(resolution.run_config))
    return resolution, machines
