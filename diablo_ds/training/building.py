"""The one sequence from run config to model with deltas, in three steps.

    design = design_model(run_config, shapes, policy, source, device_type)  # loads no weights
    built = attach_deltas(design, load_model(design, base), device)
    engine = start_engine(built.model, built.deltas, run_config, design.ds_config)

A run takes all of them. A dry run designs the same and attaches deltas on the meta device, so that
it refuses what the run refuses. Benchmarks and tests come with run configs, some with models, of
their own. What a plan shares of it is `diablo_ds.model.deltas`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diablo_ds.config.run import RunConfig
from diablo_ds.model.architecture import DTYPES, measure_base
from diablo_ds.model.base import Base
from diablo_ds.model.deltas import ModelWithDeltas, add_deltas, choose_num_blocks
from diablo_ds.model.recomputation import Recomputation, check_recomputable, choose_recomputation
from diablo_ds.planning.budget import MemoryFit, fit_memory
from diablo_ds.ranks import distributed
from diablo_ds.ranks.nodes import measure_nodes
from diablo_ds.zero import loading
from diablo_ds.zero.ds_config import complete_ds_config, zero_stage


@dataclass(frozen=True)
class Design:
    """What is decided of a model with deltas before its weights are loaded; equal on all ranks."""

    run_config: RunConfig
    shapes: Any
    """The base model on the meta device."""
    ds_config: dict[str, Any]
    """The complete DeepSpeed config."""
    num_blocks: dict[str, int]
    """Block count by the full module name of each target layer."""
    recomputation: Recomputation
    fit: MemoryFit | None = None
    """How a memory budget is kept; None without one."""

    @property
    def stage(self) -> int:
        """The ZeRO stage."""
        return zero_stage(self.ds_config)

    @property
    def partition_config(self) -> dict[str, Any] | None:
        """The DeepSpeed config by which parameters are partitioned as they are made, at stage 3."""
        return self.ds_config if self.stage == 3 else None


def design_model(
    run_config: RunConfig,
    shapes: Any,
    policy: dict[str, Any],
    source: Path,
    device_type: str,
    num_blocks: dict[str, int] | None = None,
) -> Design:
    """Decide on targets, block counts, recomputation and the DeepSpeed config.

    Collective, where the ranks have joined: every rank must call this.

    Args:
        run_config: the run config; precision and batch sizes are not open any more.
        shapes: the base model on the meta device.
        policy: the DeepSpeed config file's values.
        source: the file.
        device_type: "cuda" or "cpu".
        num_blocks: block count of each target layer by full module name, where the run has them
            from an adapter; those of the run config by default.

    Raises:
        UserError: if the file and the run config disagree, a target matches nothing, a block count
            does not divide a layer, or the model cannot be recomputed as asked.
    """
    world_size = distributed.world_size()
    complete = complete_ds_config(
        policy,
        run_config,
        world_size=world_size,
        base=measure_base(shapes, DTYPES[run_config.precision]),
        nodes=measure_nodes(),
        source=str(source),
    )
    num_blocks = num_blocks or choose_num_blocks(shapes, run_config)
    if not run_config.memory_budget:
        recomputation = choose_recomputation(run_config, shapes)
        return Design(run_config, shapes, complete, num_blocks, recomputation)
    fit = distributed.on_main_process(
        lambda: fit_memory(run_config, shapes.config, complete, world_size, device_type, num_blocks)
    )
    if fit.recomputation.num_layers:
        check_recomputable(shapes)
    return Design(run_config, shapes, complete, num_blocks, fit.recomputation, fit)


def load_model(design: Design, base: Base) -> Any:
    """Return the base model with its weights, partitioned under ZeRO-3.

    Collective under ZeRO-3: every rank must call this.
    """
    run_config = design.run_config
    attention = "" if run_config.attention == "auto" else run_config.attention
    return loading.load_weights(
        base, run_config.precision, design.partition_config, attention=attention
    )


def attach_deltas(
    design: Design, model: Any, device: torch.device | None = None
) -> ModelWithDeltas:
    """Attach the deltas to a model, in place, and prepare it for training steps.

    Args:
        design: what was decided.
        model: the base model, or ``design.shapes``.
        device: device of the deltas; that of the weights by default.
    """
    return add_deltas(
        model,
        design.num_blocks,
        design.run_config,
        design.shapes,
        recomputation=design.recomputation,
        device=device,
    )
