"""Time of a step by roofline: what each part computes, reads and moves, and what runs at once.

Estimates from the vendors' figures and the shares in `Assumptions`; those of several GPUs were not
checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from diablo_ds.model.flops import Flops
from diablo_ds.planning.communication import Layout, passes
from diablo_ds.planning.gathers import Gathers
from diablo_ds.planning.hardware import Assumptions, ClusterSize
from diablo_ds.planning.measure import ModelSizes
from diablo_ds.planning.overlap import LayerOverlap, play, visit_seconds
from diablo_ds.zero.auto_sizes import latency_seconds
from diablo_ds.zero.traffic import BASE_GATHERS, DELTA_GRADIENTS, Collective

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
    layer = layer_seconds(model, work, cluster, assumed)
    busy, waited = 0.0, 0.0
    if gathers is not None:
        busy, waited = _gathering(model, layout, work, cluster, assumed, gathers, layer)
    deltas = sum(
        _delta_seconds(collective, num_bytes, layout, cluster, assumed)
        for collective, num_bytes in traffic.items()
        if collective.kind != BASE_GATHERS
    )
    count = layout.num_micro_steps
    return StepTime(
        compute=count * sum(compute_seconds(model, work, cluster, assumed)),
        base_gathers=count * busy,
        exposed_gathers=count * waited,
        deltas=deltas,
        optimizer=_optimizer_seconds(model, layout, cluster, assumed),
    )


@dataclass(frozen=True)
class LayerSeconds:
    """What one micro batch computes, in seconds."""

    forward: float
    """Of one decoder layer."""
    backward: float
    """Of one decoder layer, without recomputation."""
    head: float
    """Of the loss head, forward and backward."""


def layer_seconds(
    model: ModelSizes, work: Work, cluster: ClusterSize, assumed: Assumptions
) -> LayerSeconds:
    """Return the seconds that a decoder layer and the loss head compute for a micro batch."""
    peak = cluster.flops * assumed.compute_share
    if model.element_bytes == 4:
        peak *= assumed.fp32_share
    bandwidth = cluster.memory_bandwidth * assumed.memory_share
    weights = 2 * model.layer_matrix_elements * work.num_rows
    attention = 2 * work.length * model.attention_width * work.num_rows  # causal: half of it
    delta = 2 * model.num_deltas / model.num_layers * work.num_rows
    # Weights are read once a pass; what is kept for the backward is written, and read again.
    moved = model.layer_matrix_elements * model.element_bytes + 2 * model.activations.layer
    return LayerSeconds(
        forward=max((weights + attention + delta) / peak, moved / bandwidth),
        # Inputs' gradients through frozen weights cost one product, not two; attention is
        # recomputed.
        backward=max((weights + 2.5 * attention + 2 * delta) / peak, 2 * moved / bandwidth),
        head=2 * 2 * work.num_rows * model.vocab_size * model.base.hidden_size / peak,
    )


def flops_per_token(model: ModelSizes, length: int) -> float:
    """Return the FLOPs for a token of a causal sequence, counted as a run counts them."""
    flops = Flops.of_sizes(
        model.num_layers * model.layer_matrix_elements,
        model.vocab_size * model.base.hidden_size,
        model.attention_width,
        model.num_layers,
    )
    return flops.total(tokens=length, targets=length, squared_lengths=length**2) / length


def compute_seconds(
    model: ModelSizes, work: Work, cluster: ClusterSize, assumed: Assumptions
) -> tuple[float, float]:
    """Return the seconds of a micro step's forward, loss included, and of its backward."""
    layer = layer_seconds(model, work, cluster, assumed)
    forward = model.num_layers * layer.forward + layer.head
    return forward, model.num_layers * layer.backward + work.num_recomputed * layer.forward


def collective_seconds(
    num_bytes: float, group: int, layout: Layout, cluster: ClusterSize, assumed: Assumptions
) -> float:
    """Return the seconds of a ring's gather or scatter of ``num_bytes``, unsharded."""
    if group == 1:
        return 0.0
    moved = num_bytes * (group - 1) / group / assumed.link_share
    seconds = moved / cluster.inside_bandwidth if layout.ranks_per_node > 1 else 0.0
    if group > layout.ranks_per_node:
        seconds = max(seconds, moved / cluster.between_bandwidth)
    return seconds + latency_seconds(group, layout.ranks_per_node, assumed.latency_us * 1e-6)


def _delta_seconds(
    collective: Collective,
    num_bytes: int,
    layout: Layout,
    cluster: ClusterSize,
    assumed: Assumptions,
) -> float:
    """Return the seconds of reducing the deltas' gradients or of gathering the new deltas."""
    group = collective.group_size
    moved = passes(collective, layout.stage) * num_bytes
    seconds = collective_seconds(moved, group, layout, cluster, assumed)
    if collective.kind == DELTA_GRADIENTS and layout.stage and layout.bucket_elements:
        num_buckets = math.ceil(num_bytes / layout.gradient_bytes / layout.bucket_elements)
        latency = latency_seconds(group, layout.ranks_per_node, assumed.latency_us * 1e-6)
        seconds += (num_buckets - 1) * latency
    return seconds


def gather_seconds(
    num_bytes: float, layout: Layout, cluster: ClusterSize, assumed: Assumptions
) -> float:
    """Return the seconds of one gather of base weights: ``num_bytes`` as they are after it."""
    group = layout.gather_group
    seconds = collective_seconds(num_bytes, group, layout, cluster, assumed)
    if layout.offload:
        # DeepSpeed copies this rank's shards from the host on the stream of the gathers, so
        # that a copy and a gather never run at once; both run beside computing.
        seconds += num_bytes / group / (assumed.host_gbs * 1e9)
    return seconds


def layer_overlap(
    model: ModelSizes, layout: Layout, work: Work, cluster: ClusterSize, assumed: Assumptions
) -> LayerOverlap | None:
    """Return how a layer's gather compares with its computing; None where nothing is gathered."""
    if not layout.gathers_base:
        return None
    num_bytes = model.base.layer * model.element_bytes
    gather = gather_seconds(num_bytes, layout, cluster, assumed)
    layer = layer_seconds(model, work, cluster, assumed)
    return LayerOverlap(
        gather_bytes=num_bytes,
        gather=gather,
        forward=layer.forward,
        backward=layer.backward,
        tokens_to_hide=math.ceil(work.num_rows * gather / layer.forward),
    )


def _gathering(
    model: ModelSizes,
    layout: Layout,
    work: Work,
    cluster: ClusterSize,
    assumed: Assumptions,
    gathers: Gathers,
    layer: LayerSeconds,
) -> tuple[float, float]:
    """Return the seconds of a micro step's gathers, and those that computing waits for them."""
    # Recomputed layers are spread over the model.
    again = layer.forward * work.num_recomputed / model.num_layers
    sizes = [p.num_elements for p in model.parameters]
    compute = visit_seconds(model.visits, sizes, layer.forward, layer.backward + again, layer.head)
    return play(
        gathers.rounds,
        compute,
        lambda n: gather_seconds(n * model.element_bytes, layout, cluster, assumed),
    )


def _optimizer_seconds(
    model: ModelSizes, layout: Layout, cluster: ClusterSize, assumed: Assumptions
) -> float:
    part = model.num_deltas / (layout.world_size if layout.stage else 1)
    if layout.offload:
        moved = part * (layout.gradient_bytes + model.element_bytes) / (assumed.host_gbs * 1e9)
        return moved + part * _ADAM_BYTES / (assumed.host_adam_gbs * 1e9)
    return part * _ADAM_BYTES / (cluster.memory_bandwidth * assumed.memory_share)
