"""What a run would do, as text: config, batch equation, targets, placement. Loads no weights."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from diablo_ds.adapter.attach import attach, diablo_layers
from diablo_ds.adapter.layer import DiaBloLinear
from diablo_ds.config.batch_resolution import resolve_batch
from diablo_ds.config.run import RunConfig
from diablo_ds.model.architecture import DTYPES, decoder_layers
from diablo_ds.model.base import keep_apart, read_base
from diablo_ds.model.finding import find_model
from diablo_ds.model.recomputation import choose_recomputation
from diablo_ds.planning.budget import fit_memory
from diablo_ds.ranks import distributed
from diablo_ds.training.machine import look_at_machines
from diablo_ds.training.resolution import resolve_run
from diablo_ds.training.run_folder import choose_run_folder, recorded_config
from diablo_ds.training.startup import (
    complete_ds_config,
    describe_adapter,
    load_inputs,
)
from diablo_ds.zero import ds_config, placement
from diablo_ds.zero.joining import import_deepspeed
from diablo_ds.zero.support import check_precision


def describe_run(config: RunConfig, ds_config_file: Path) -> str:
    """Check the inputs as a run would, and return what it would do.

    The world size is what the launcher announced, 1 without one; what a run would find on its
    machines is looked for on this one. A default model that was never used is converted first.

    Raises:
        UserError: if a setting, file or folder is wrong.
    """
    import_deepspeed()
    world_size = distributed.world_size()
    policy = ds_config.load_ds_config(ds_config_file)
    recorded = recorded_config(config)
    resolve_batch(config, world_size, recorded=recorded, policy=policy)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_precision(config.precision, device.type, ds_config.zero_stage(policy))
    folder = choose_run_folder(config)
    model_folder = find_model(config.model, config.cache_folder, shared=config.shared_folders)
    base = read_base(model_folder)
    machines = look_at_machines(config, base.shapes, device)
    resolution = resolve_run(config, machines, base.shapes, recorded=recorded, policy=policy)
    config, separation = keep_apart(base, resolution.config, asked=config.attention)
    inputs = load_inputs(config, base, separation)
    model = base.shapes.to(DTYPES[config.precision])
    complete = complete_ds_config(policy, config, model, ds_config_file)
    stage = ds_config.zero_stage(complete)
    recomputing = _recomputing(config, base.config, model, complete)
    num_base = sum(p.numel() for p in model.parameters())
    adapter_config = describe_adapter(model, config, base.folder)
    deltas = attach(model, adapter_config.num_blocks)
    num_deltas = sum(delta.numel() for delta in deltas.values())
    expected = placement.choose_placement(model, deltas, complete)
    return "\n\n".join(
        [
            "\n".join(["Chosen:", *(f"  {line}" for line in resolution.lines)]),
            *(f"Warning: {line}" for line in resolution.warnings),
            "Run config:\n" + json.dumps(dataclasses.asdict(config), indent=2),
            f"DeepSpeed config, from {ds_config_file}:\n" + json.dumps(complete, indent=2),
            inputs.describe(config, world_size) + f"\noutput folder {folder}\n{recomputing}",
            "Targets:\n" + _target_lines(diablo_layers(model)),
            f"Trainable {num_deltas:,} of {num_base + num_deltas:,} parameters "
            f"({num_deltas / num_base:.3%} of the base)",
            f"Placement, ZeRO stage {stage}, world size {world_size}:\n"
            + placement.placement_table(expected, stage=stage, world_size=world_size),
        ]
    )


def _recomputing(config: RunConfig, model_config: Any, model: Any, complete: dict[str, Any]) -> str:
    """Say which decoder layers are recomputed."""
    if config.memory_budget:
        world_size = distributed.world_size()
        return fit_memory(config, model_config, complete, world_size, _device_type()).text()
    return choose_recomputation(config, model).text(len(decoder_layers(model)))


def _device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _target_lines(layers: dict[str, DiaBloLinear]) -> str:
    """Return one line per kind of target layer."""
    kinds = Counter(
        (name.rpartition(".")[2], m.in_features, m.out_features, m.num_blocks)
        for name, m in layers.items()
    )
    return "\n".join(
        f"  {count} x {name}: {in_features} -> {out_features}, num_blocks={num_blocks}, "
        f"{in_features * out_features // num_blocks:,} parameters each"
        for (name, in_features, out_features, num_blocks), count in kinds.items()
    )
