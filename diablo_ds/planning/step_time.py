"""Time of a step by roofline: what each part computes, reads and moves, and what runs at once.

Estimates from the vendors' figures and the shares in `Assumptions`; not checked on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from diablo_ds.planning.communication import Layout, base_gather_bytes, passes
from diablo_ds.planning.gathers import Gathers
from diablo_ds.planning.hardware import Assumptions, ClusterSize
from diablo_ds.planning.measure import ModelSizes
from diablo_ds.zero.traffic import BASE_GATHERS, Collective

_ADAM_BYTES = 30
"""Read and written of a delta element: master and moments twice, gradient, bf16 copy."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, and what they go to."""

    compute: float
    """Forward, backward and loss of all micro steps."""
    base_gathers: float
    """Base gathers of all micro steps; partly at the same time as computing."""
    exposed_gathers: float
    """The part of them that computing waits for."""
    deltas: float
    """Reducing the gradients of the deltas and gathering the new ones, once a step."""
    optimizer: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.compute + self.exposed_gathers + self.deltas + self.optimizer


@dataclass(frozen=True)
class Work:
    """One rank's micro batch."""

    num_rows: int
    """Tokens."""
    length: int
    """Tokens of a sequence."""
    num_recomputed: int
    """Decoder layers that are computed again in the backward."""


def step_time(
    model: ModelSizes,
    layout: Layout,
    work: Work,
    cluster: ClusterSize,
    assumed: Assumptions,
    traffic: Mapping[Collective, int],
    gathers: Gathers | None,
) -> StepTime:
    """Estimate the seconds of one optimizer step."""
    forward, backward = compute_seconds(model, work, cluster, assumed)
    in_forward, in_backward, first = _gather_seconds(model, layout, cluster, assumed, gathers)
    # A layer is gathered while the one before it computes; the first one has nobody to hide behind.
    exposed = first + max(0.0, in_forward - forward) + max(0.0, in_backward - backward)
    deltas = sum(
        collective_seconds(
            passes(collective, layout.stage) * num_bytes,
            collective.group_size,
            layout,
            cluster,
            assumed,
        )
        for collective, num_bytes in traffic.items()
        if collective.kind != BASE_GATHERS
    )
    count = layout.num_micro_steps
    return StepTime(
        compute=count * (forward + backward),
        base_gathers=count * (in_forward + in_backward + first),
        exposed_gathers=count * exposed,
        deltas=deltas,
        optimizer=_optimizer_seconds(model, layout, cluster, assumed),
    )


def compute_seconds(
    model: ModelSizes, work: Work, cluster: ClusterSize, assumed: Assumptions
) -> tuple[float, float]:
    """Return the seconds of a micro step's forward, loss included, and of its backward."""
    peak = cluster.flops * assumed.compute_share
    if model.element_bytes == 4:
        peak *= assumed.fp32_share
    bandwidth = cluster.memory_bandwidth * assumed.memory_share
    weights = 2 * model.layer_matrix_elements * work.num_rows
    attention = 2 * work.length * model.attention_width * work.num_rows  # causal: half of it
    delta = 2 * model.num_deltas / model.num_layers * work.num_rows
    # Weights are read once a pass; what is kept for the backward is written, and read again.
    moved = model.layer_matrix_elements * model.element_bytes + 2 * model.activations.layer
    in_layer = max((weights + attention + delta) / peak, moved / bandwidth)
    # Inputs' gradients through frozen weights cost one product, not two; attention is recomputed.
    back = max((weights + 2.5 * attention + 2 * delta) / peak, 2 * moved / bandwidth)
    head = 2 * 2 * work.num_rows * model.vocab_size * model.base.hidden_size / peak
    forward = model.num_layers * in_layer + head
    return forward, model.num_layers * back + work.num_recomputed * in_layer


def collective_seconds(
    num_bytes: float, group: int, layout: Layout, cluster: ClusterSize, assumed: Assumptions
) -> float:
    """Return the seconds of a ring's gather or scatter of ``num_bytes``, unsharded."""
    if group == 1:
        return 0.0
    moved = num_bytes * (group - 1) / group / assumed.link_share
    latency = assumed.latency_us * 1e-6
    seconds = moved / cluster.inside_bandwidth if layout.ranks_per_node > 1 else 0.0
    if group > layout.ranks_per_node:
        latency *= 1 + math.log10(group)
        seconds = max(seconds, moved / cluster.between_bandwidth)
    return seconds + latency


def _gather_seconds(
    model: ModelSizes,
    layout: Layout,
    cluster: ClusterSize,
    assumed: Assumptions,
    gathers: Gathers | None,
) -> tuple[float, float, float]:
    """Return a micro step's gathers in forward and backward, and the first one, in seconds."""
    if gathers is None:
        return 0.0, 0.0, 0.0
    group = layout.gather_group
    total = base_gather_bytes(model, layout, gathers)
    once = sum(p.num_elements for p in model.parameters if p.sharded) * model.element_bytes
    first = model.base.layer * model.element_bytes

    def seconds(num_bytes: float, num_calls: float) -> float:
        one = collective_seconds(num_bytes / num_calls, group, layout, cluster, assumed)
        if layout.offload:
            # DeepSpeed copies this rank's shards from the host on the stream of the gathers, so
            # that a copy and a gather never run at once; both run beside computing.
            one += num_bytes / num_calls / group / (assumed.host_gbs * 1e9)
        return num_calls * one

    calls = model.num_layers + 2
    in_forward = seconds(max(0, once - first), calls)
    in_backward = seconds(max(0, total - once), calls) if total > once else 0.0
    return in_forward, in_backward, seconds(first, 1)


def _optimizer_seconds(
    model: ModelSizes, layout: Layout, cluster: ClusterSize, assumed: Assumptions
) -> float:
    part = model.num_deltas / (layout.world_size if layout.stage else 1)
    if layout.offload:
        moved = part * (layout.gradient_bytes + model.element_bytes) / (assumed.host_gbs * 1e9)
        return moved + part * _ADAM_BYTES / (assumed.host_adam_gbs * 1e9)
    return part * _ADAM_BYTES / (cluster.memory_bandwidth * assumed.memory_share)
