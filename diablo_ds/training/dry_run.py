"""What a run would do, as text: config, batch equation, targets, placement. Loads no weights."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import torch

from diablo_ds.adapter.attach import diablo_layers
from diablo_ds.adapter.layer import DiaBloLinear
from diablo_ds.config.run import RunConfig
from diablo_ds.model.architecture import DTYPES, decoder_layers
from diablo_ds.ranks import distributed
from diablo_ds.training.building import Design, attach_deltas
from diablo_ds.training.preparing import Prepared, prepare_run
from diablo_ds.training.resuming import Position, find_position
from diablo_ds.zero.build_lock import check_extensions, extensions_folder
from diablo_ds.zero.joining import import_deepspeed
from diablo_ds.zero.placement import choose_placement, placement_table


def describe_run(run_config: RunConfig, ds_config_file: Path) -> str:
    """Check the inputs as a run does, and return what it would do.

    The world size is what the launcher announced, 1 without one; every rank is taken to be on a
    machine like this one. A default model that was never used is converted first.

    Raises:
        UserError: if a setting, file or folder is wrong: whatever a run refuses.
    """
    import_deepspeed()
    check_extensions(extensions_folder())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepared = prepare_run(run_config, ds_config_file, device)
    position = find_position(prepared, prepared.folder)
    run_config, design, world_size = (
        prepared.run_config,
        prepared.design,
        distributed.world_size(),
    )
    recomputing = _recomputation_text(design)
    model = design.shapes.to(DTYPES[run_config.precision])
    num_base = sum(p.numel() for p in model.parameters())
    deltas = attach_deltas(design, model).deltas
    num_deltas = sum(delta.numel() for delta in deltas.values())
    expected = choose_placement(model, deltas, design.ds_config)
    data = prepared.inputs.describe(run_config, world_size, position.num_steps)
    if prepared.tasks is not None:
        data += f"\n{prepared.tasks.describe()}"
    return "\n\n".join(
        [
            "\n".join(["Chosen:", *(f"  {line}" for line in prepared.resolution.lines)]),
            *(f"Warning: {line}" for line in prepared.resolution.warnings),
            "Run config:\n" + json.dumps(dataclasses.asdict(run_config), indent=2),
            f"DeepSpeed config, from {ds_config_file}:\n" + json.dumps(design.ds_config, indent=2),
            f"{data}\noutput folder {prepared.folder}{_start_text(prepared, position)}\n"
            + recomputing,
            "Targets:\n" + _target_lines(diablo_layers(model)),
            f"Trainable {num_deltas:,} of {num_base + num_deltas:,} parameters "
            f"({num_deltas / num_base:.3%} of the base)",
            f"Placement, ZeRO stage {design.stage}, world size {world_size}:\n"
            + placement_table(expected, stage=design.stage, world_size=world_size),
        ]
    )


def _start_text(prepared: Prepared, position: Position) -> str:
    if position.checkpoint is not None:
        text = f"\ncontinues after step {position.start_step} of {position.num_steps}"
        if position.changes:
            text += f"\n{position.describe_changes(prepared.run_config, prepared.folder)}"
        return text
    return "" if prepared.initial is None else f"\n{prepared.initial.describe()}"


def _recomputation_text(design: Design) -> str:
    """Say which decoder layers are recomputed."""
    if design.fit is not None:
        return design.fit.text()
    return design.recomputation.text(len(decoder_layers(design.shapes)))


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
