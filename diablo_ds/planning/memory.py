"""Memory of one rank by kind, from shapes and layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from diablo_ds.model.loss import loss_head_bytes
from diablo_ds.model.recomputation import Recomputation
from diablo_ds.planning.communication import Layout, padded
from diablo_ds.planning.gathers import Gathers
from diablo_ds.planning.measure import ModelSizes

DEFAULT_BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's reduce_bucket_size where a config names none."""
_OPTIMIZER_BYTES = 12
"""fp32 master and AdamW's two moments, of each delta element."""
_GRADIENT_BYTES = 4
"""fp32 at any precision, see `diablo_ds.zero.gradients`."""
_DTYPES = {2: torch.bfloat16, 4: torch.float32}


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the peak of a step."""

    base: int
    """Frozen weights, or this rank's shards of them."""
    gathered: int
    """Weights of other ranks that are here for a while, under ZeRO-3."""
    deltas: int
    gradients: int
    """Of the deltas: all of them until the step ends, then this rank's part."""
    optimizer: int
    """fp32 masters and moments of this rank's part of the deltas."""
    activations: int
    """What autograd keeps of a micro batch."""
    transient: int
    """The larger of the loss's chunk of logits and one layer's backward, recomputed or not."""
    buffers: int
    """DeepSpeed's buckets for reducing gradients."""

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(getattr(self, field.name) for field in fields(self))


def buckets(zero: Mapping[str, Any]) -> tuple[float, int]:
    """Return the elements of a bucket for reducing gradients, and how many buckets there are.

    Args:
        zero: the ZeRO section of a complete DeepSpeed config.
    """
    has_two = zero.get("stage", 0) in (1, 2) and zero.get("overlap_comm")
    return float(zero.get("reduce_bucket_size", DEFAULT_BUCKET_ELEMENTS)), 2 if has_two else 1


def rank_memory(
    model: ModelSizes,
    layout: Layout,
    recomputation: Recomputation,
    num_rows: int,
    *,
    gathers: Gathers | None,
    buckets: tuple[float, int],
    device_type: str = "cuda",
) -> Memory:
    """Return the memory of one rank by kind.

    Args:
        model: the model's sizes; its activations are those of one micro batch.
        layout: how the run is spread.
        recomputation: which decoder layers are computed again in the backward.
        num_rows: tokens of a micro batch.
        gathers: of a micro step, under ZeRO-3.
        buckets: elements of one, which a GPU allocates in full, and how many there are.
        device_type: "cuda" or "cpu".
    """
    size, stage, world = model.element_bytes, layout.stage, layout.world_size
    deltas = padded(model.num_deltas, world)
    part = deltas // world if stage else deltas
    gathered = 0
    if gathers is not None:
        # What comes from other ranks arrives in one flat buffer and is copied out of it.
        ahead = gathers.most_ahead if world > 1 else 0
        gathered = (gathers.most_elements + ahead) * size
    kept = model.activations.saved_bytes(model.num_layers, recomputation)
    again = model.activations.recompute_bytes(recomputation)
    layer_backward = again + 3 * num_rows * model.widest * size
    bucket_elements, num_buckets = buckets
    # On a CPU a bucket takes what is written to it.
    bucket = bucket_elements if device_type != "cpu" else min(bucket_elements, deltas)
    bucket_bytes = layout.gradient_bytes if stage == 3 else _GRADIENT_BYTES
    return Memory(
        base=_base(model, layout),
        gathered=gathered,
        deltas=(deltas + (part if stage == 3 else 0)) * size,
        gradients=(deltas + (part if stage else 0)) * _GRADIENT_BYTES,
        optimizer=0 if layout.offload else part * _OPTIMIZER_BYTES,
        activations=kept,
        transient=max(_loss(model, num_rows, device_type), layer_backward),
        buffers=int(bucket * bucket_bytes * num_buckets) if stage and world > 1 else 0,
    )


def host_bytes(model: ModelSizes, layout: Layout) -> int:
    """Return what the ranks of a node keep in its memory, with offload."""
    if not layout.offload:
        return 0
    shards = sum(
        padded(p.num_elements, layout.world_size) // layout.world_size
        for p in model.parameters
        if p.sharded
    )
    # Masters, moments, and the gradient as it arrives and as the optimizer takes it.
    optimizer = padded(model.num_deltas, layout.world_size) // layout.world_size * 20
    return layout.ranks_per_node * (shards * model.element_bytes + optimizer)


def _base(model: ModelSizes, layout: Layout) -> int:
    base = [p for p in model.parameters if p.group != "deltas"]
    if layout.stage < 3:
        return model.num_base * model.element_bytes
    resident = [p for p in base if not (layout.offload and p.sharded)]
    num_bytes = sum(p.bytes_per_rank(layout.world_size, 3) for p in resident)
    if layout.hpz > 1:
        second = sum(padded(p.num_elements, layout.world_size) for p in base if p.sharded)
        num_bytes += second // layout.hpz * model.element_bytes
    return num_bytes


def _loss(model: ModelSizes, num_rows: int, device_type: str) -> int:
    if model.has_loss_head:
        dtype = _DTYPES[model.element_bytes]
        hidden = model.base.hidden_size
        # The rows that carry loss are picked out of the hidden states first.
        picked = 2 * num_rows * hidden * model.element_bytes
        return picked + loss_head_bytes(num_rows, hidden, model.vocab_size, dtype, device_type)
    # Logits and their gradient, as they are and in fp32.
    return num_rows * model.vocab_size * 2 * (model.element_bytes + 4)


def memory_dict(memory: Memory) -> Mapping[str, int]:
    """Return bytes by kind, with the total."""
    return {**{f.name: getattr(memory, f.name) for f in fields(memory)}, "total": memory.total}
