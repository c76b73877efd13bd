"""Recompute the fewest decoder layers that fit a memory budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.model.activations import attention_share
from diablo_ds.model.recomputation import Recomputation
from diablo_ds.planning.communication import Layout, gathers_per_micro_step
from diablo_ds.planning.hardware import GB
from diablo_ds.planning.measure import measure_model
from diablo_ds.planning.memory import buckets, rank_memory
from diablo_ds.ranks.distributed import local_world_size


@dataclass(frozen=True)
class MemoryFit:
    """What was chosen for a budget."""

    recomputation: Recomputation
    num_layers: int
    planned_bytes: int
    budget: float
    """In GB."""

    def text(self) -> str:
        """Return it as a line of text."""
        return (
            f"Memory budget {self.budget:g} GB: {self.recomputation.text(self.num_layers)}; "
            f"planned peak {self.planned_bytes / GB:.2f} GB"
        )


def fit_memory(
    run_config: RunConfig,
    model_config: Any,
    ds_config: Mapping[str, Any],
    world_size: int,
    device_type: str,
    num_blocks: dict[str, int] | None = None,
) -> MemoryFit:
    """Choose which decoder layers are recomputed, so that a rank's planned peak fits.

    Args:
        run_config: the run config; its budget is in GB of data on the device, without what
            libraries take.
        model_config: the model's Hugging Face config.
        ds_config: the complete DeepSpeed config.
        world_size: number of ranks.
        device_type: "cuda" or "cpu".
        num_blocks: block count of each target layer by full module name; those of the run config by
            default.

    Raises:
        UserError: if nothing fits.
    """
    num_micro_steps = run_config.accumulation_steps(world_size)
    if run_config.micro_batch_tokens:
        rows = max(1, run_config.micro_batch_tokens // run_config.max_length)
        run_config = dataclasses.replace(run_config, micro_batch=rows, micro_batch_tokens=0)
    compiled = run_config.compile == "on" or (run_config.compile, device_type) == ("auto", "cuda")
    model = measure_model(model_config, run_config, num_blocks, compiled=compiled)
    zero = ds_config["zero_optimization"]
    layout = Layout.of(
        zero,
        world_size=world_size,
        ranks_per_node=min(world_size, local_world_size()),
        num_micro_steps=num_micro_steps,
        communication_data_type=ds_config["communication_data_type"],
    )
    gathers = gathers_per_micro_step(model, layout) if layout.gathers_base else None
    num_rows = run_config.micro_batch * run_config.max_length
    share = attention_share(model_config.get_text_config(), run_config.max_length)

    def planned_bytes(recomputation: Recomputation) -> int:
        return rank_memory(
            model,
            layout,
            recomputation,
            num_rows,
            gathers=gathers,
            buckets=buckets(zero),
            device_type=device_type,
        ).total

    keeping = (False,) if run_config.reentrant else (False, True)
    choices = [
        Recomputation(count, keep)
        for count in range(model.num_layers + 1)
        for keep in (keeping if count else (False,))
    ]
    fitting = [
        choice for choice in choices if planned_bytes(choice) <= run_config.memory_budget * GB
    ]
    if not fitting:
        least = min(planned_bytes(choice) for choice in choices)
        raise UserError(
            "memory_budget must hold the run; got "
            f"memory_budget={run_config.memory_budget:g} GB, the least is {least / GB:.2f} GB with "
            "every layer recomputed; use a smaller micro_batch, ZeRO stage 3 or more ranks"
        )
    # A layer whose attention is kept costs only the rest of its forward a second time.
    best = min(fitting, key=lambda c: (c.num_layers * (1 - share * c.keep_attention), c))
    return MemoryFit(best, model.num_layers, planned_bytes(best), run_config.memory_budget)
