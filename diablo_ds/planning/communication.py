"""Bytes that a step moves, by kind of collective and by link; equal to what is counted in a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diablo_ds.planning.gathers import Gathers, Limits, simulate
from diablo_ds.planning.measure import ModelSizes
from diablo_ds.zero.ds_config import offload_device
from diablo_ds.zero.traffic import BASE_GATHERS, DELTA_GATHERS, DELTA_GRADIENTS, Collective

NO_LIMITS = Limits(0, 0, 0)
LIMIT_KEYS = (
    "stage3_prefetch_bucket_size",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
)
"""DeepSpeed's names for the fields of `Limits`."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a run is spread over ranks: what decides about its traffic."""

    stage: int
    world_size: int
    ranks_per_node: int
    hpz: int = 1
    """Over how many ranks the base is sharded a second time; 1 for none."""
    limits: Limits = NO_LIMITS
    """DeepSpeed's settings about gathers, for stage 3."""
    num_micro_steps: int = 1
    offload: bool = False
    """Whether base shards and optimizer lie in the host's memory."""
    gradient_bytes: int = 4
    """Bytes of a gradient's element as it is reduced: DeepSpeed's communication_data_type."""
    bucket_elements: int = 0
    """Gradient elements that one collective reduces, from ZeRO-1 on; 0 for all of them."""

    @classmethod
    def of(
        cls,
        zero: Mapping[str, Any],
        *,
        world_size: int,
        ranks_per_node: int,
        num_micro_steps: int,
        communication_data_type: str = "fp32",
    ) -> Layout:
        """Return the layout that the ZeRO section of a complete DeepSpeed config makes."""
        return cls(
            stage=int(zero.get("stage", 0)),
            world_size=world_size,
            ranks_per_node=ranks_per_node,
            hpz=int(zero.get("zero_hpz_partition_size", 1)),
            limits=Limits(*(int(zero.get(key, 0)) for key in LIMIT_KEYS)),
            num_micro_steps=num_micro_steps,
            offload=offload_device({"zero_optimization": zero}, "param") != "none",
            gradient_bytes=4 if communication_data_type == "fp32" else 2,
            bucket_elements=int(zero.get("reduce_bucket_size", 0)),
        )

    @property
    def gathers_base(self) -> bool:
        """Whether weights come from elsewhere: a single rank's are all there."""
        return self.stage == 3 and (self.world_size > 1 or self.offload)

    @property
    def num_nodes(self) -> int:
        """The number of nodes."""
        return -(-self.world_size // self.ranks_per_node)

    @property
    def gather_group(self) -> int:
        """Ranks that a gather of the base takes."""
        return self.hpz if self.hpz > 1 else self.world_size


@dataclass(frozen=True)
class LinkBytes:
    """Bytes of one step on the links, each in one direction, as rings move them."""

    inside: float
    """Into one rank from its neighbour in the node."""
    between: float
    """Into one node over its network."""
    host: float
    """Into one rank's device from the host's memory."""


def padded(num_elements: int, parts: int) -> int:
    """Return elements rounded up to a multiple of ``parts``."""
    return parts * -(-num_elements // parts)


def gathers_per_micro_step(model: ModelSizes, layout: Layout) -> Gathers:
    """Return how often a micro step gathers each parameter under ZeRO-3."""
    sizes = {i: p.num_elements for i, p in enumerate(model.parameters)}
    kept = [i for i, p in enumerate(model.parameters) if not p.sharded]
    at_first = layout.num_micro_steps == 1
    return simulate(model.visits, sizes, kept, layout.limits, kept_at_first=at_first)


def base_gather_bytes(model: ModelSizes, layout: Layout, gathers: Gathers) -> int:
    """Return the bytes of a micro step's base gathers, each as it is after the gather."""
    return sum(
        count * padded(model.parameters[i].num_elements, layout.world_size) * model.element_bytes
        for i, count in gathers.counts.items()
    )


def step_traffic(
    model: ModelSizes, layout: Layout, gathers: Gathers | None = None
) -> dict[Collective, int]:
    """Return the bytes of one step's collectives, as `diablo_ds.zero.traffic.Traffic` counts them.

    Args:
        model: the model's sizes.
        layout: how the run is spread.
        gathers: of a micro step, if they are known already.
    """
    world, size = layout.world_size, model.element_bytes
    if world == 1:
        return {}
    deltas = [p.num_elements for p in model.parameters if p.group == "deltas"]
    if layout.stage == 3:
        gathers = gathers or gathers_per_micro_step(model, layout)
        replicated = [p.num_elements for p in model.parameters if not p.sharded]
        of_base = layout.num_micro_steps * base_gather_bytes(model, layout, gathers)
        return {
            Collective(BASE_GATHERS, layout.gather_group): of_base,
            Collective(DELTA_GRADIENTS, world): (
                sum(padded(n, world) for n in deltas) * layout.gradient_bytes
            ),
            Collective(DELTA_GATHERS, world): sum(padded(n, world) for n in replicated) * size,
        }
    traffic = {Collective(DELTA_GRADIENTS, world): sum(deltas) * layout.gradient_bytes}
    if layout.stage:
        # One flat buffer, in which DeepSpeed aligns each rank's part to two elements.
        traffic[Collective(DELTA_GATHERS, world)] = padded(sum(deltas), 2 * world) * size
    return traffic


def passes(collective: Collective, stage: int) -> int:
    """Return how often a ring moves a collective's bytes: an all-reduce moves them twice."""
    return 2 if collective.kind == DELTA_GRADIENTS and stage < 3 else 1


def link_bytes(
    model: ModelSizes, layout: Layout, traffic: Mapping[Collective, int], gathers: Gathers | None
) -> LinkBytes:
    """Return the bytes of one step on each kind of link."""
    inside = between = 0.0
    for collective, num_bytes in traffic.items():
        group = collective.group_size
        moved = passes(collective, layout.stage) * num_bytes * (group - 1) / group
        if group > layout.ranks_per_node:
            between += moved
        if layout.ranks_per_node > 1:
            inside += moved
    host = 0.0
    if layout.offload and gathers is not None:
        of_base = base_gather_bytes(model, layout, gathers) * layout.num_micro_steps
        host = of_base / layout.gather_group
        # Gradients down and new deltas up, of this rank's part.
        host += model.num_deltas * model.element_bytes / layout.world_size
    return LinkBytes(inside, between, host)
