"""ZeRO placement: the base sharded, the deltas replicated; decided by name, then verified.

DeepSpeed's stage 3 keeps a parameter unsharded between steps by its size alone
(`stage3_param_persistence_threshold`). The deltas of a large model are larger than its default,
and with few blocks larger than a frozen k or v weight, so no threshold is right. Here the choice
is by name: deltas and one-dimensional base parameters (norms, biases) are replicated, every base
matrix is sharded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from diablo_ds.files.text_table import text_table
from diablo_ds.ranks.log import logger
from diablo_ds.ranks.progress import format_bytes
from diablo_ds.zero.private.names import is_tested
from diablo_ds.zero.private.parameters import full_shape, is_partitioned, shard, status

PERSISTENCE_THRESHOLD = "stage3_param_persistence_threshold"
GROUPS = ("base matrices", "base vectors", "deltas")


@dataclass(frozen=True)
class TensorPlacement:
    """Where one parameter is kept between steps."""

    name: str
    group: str
    num_elements: int
    element_bytes: int
    sharded: bool

    def bytes_per_rank(self, world_size: int, stage: int) -> int:
        """Return what a rank holds: a shard under stage 3, a replica, or both."""
        in_shard = -(-self.num_elements // world_size) if stage == 3 else 0
        in_replica = 0 if self.sharded else self.num_elements
        return (in_shard + in_replica) * self.element_bytes


def size_threshold(deltas: Iterable[torch.Tensor]) -> int:
    """Return the fallback: the smallest persistence threshold that replicates every delta."""
    return max(delta.numel() for delta in deltas)


def expected_placement(
    model: nn.Module,
    deltas: Mapping[str, nn.Parameter],
    *,
    stage: int,
    threshold: int,
    by_name: bool = True,
) -> list[TensorPlacement]:
    """Return where each parameter has to be.

    Args:
        model: the model with deltas attached; may be on the meta device.
        deltas: the deltas by parameter name.
        stage: ZeRO stage, 0 to 3.
        threshold: stage 3 also replicates base parameters of at most this many elements.
        by_name: whether placement is by name; otherwise by the threshold alone.
    """
    result = []
    for name, parameter in model.named_parameters():
        shape = full_shape(parameter)
        num_elements = shape.numel()
        group = (
            "deltas" if name in deltas else "base vectors" if len(shape) < 2 else "base matrices"
        )
        is_replicated = num_elements <= threshold or (by_name and group != "base matrices")
        sharded = stage == 3 and not is_replicated
        result.append(TensorPlacement(name, group, num_elements, parameter.element_size(), sharded))
    return result


def choose_placement(
    model: nn.Module,
    deltas: Mapping[str, nn.Parameter],
    ds_config: dict[str, Any],
    *,
    by_name: bool | None = None,
) -> list[TensorPlacement]:
    """Return where each parameter has to be under a DeepSpeed config.

    Args:
        model: the model with deltas attached; may be on the meta device.
        deltas: the deltas by parameter name.
        ds_config: the complete DeepSpeed config; placement by size raises its threshold.
        by_name: whether to place by name or, the fallback, by size; by default, by name where the
            installed DeepSpeed was tested for it.
    """
    by_name = is_tested() if by_name is None else by_name
    zero = ds_config["zero_optimization"]
    stage = int(zero.get("stage", 0))
    if stage == 3 and not by_name:
        least = size_threshold(deltas.values())
        zero[PERSISTENCE_THRESHOLD] = max(zero[PERSISTENCE_THRESHOLD], least)
        logger.warning(f"Placing by size: {PERSISTENCE_THRESHOLD}={zero[PERSISTENCE_THRESHOLD]}")
    threshold = zero.get(PERSISTENCE_THRESHOLD, 0)
    return expected_placement(model, deltas, stage=stage, threshold=threshold, by_name=by_name)


def verify_placement(
    model: nn.Module, expected: Iterable[TensorPlacement], *, stage: int, world_size: int, when: str
) -> None:
    """Raise RuntimeError if a parameter is not where it has to be.

    Args:
        model: the model, after DeepSpeed took it over.
        expected: see `expected_placement`.
        stage: ZeRO stage.
        world_size: number of ranks.
        when: moment of the check, for the message.
    """
    parameters = dict(model.named_parameters())
    violations = [
        problem
        for placement in expected
        if (problem := _violation(placement, parameters[placement.name], stage, world_size))
    ]
    if violations:
        raise RuntimeError(
            f"the base must be sharded and the deltas replicated {when}; got {len(violations)} "
            f"violations: {'; '.join(violations[:3])}"
        )


def _violation(
    placement: TensorPlacement, parameter: Any, stage: int, world_size: int
) -> str | None:
    name, size = placement.name, placement.num_elements
    if parameter.requires_grad != (placement.group == "deltas"):
        return f"{name} has requires_grad={parameter.requires_grad}"
    if stage < 3:
        return None if parameter.numel() == size else f"{name} is not full"
    if not is_partitioned(parameter):
        return f"{name} was not taken over by ZeRO-3"
    largest_shard = -(-size // world_size)
    if shard(parameter).numel() > largest_shard:
        return f"{name} has a shard of {shard(parameter).numel()}, not {largest_shard}"
    wanted = "NOT_AVAILABLE" if placement.sharded else "AVAILABLE"
    if status(parameter) != wanted:
        return f"{name} is {status(parameter)}, not {wanted}"
    if not placement.sharded and parameter.numel() != size:
        return f"{name} holds {parameter.numel()} of {size} elements"
    return None


class _Part(NamedTuple):
    """A row of the placement."""

    group: str
    num_tensors: int
    num_parameters: int
    bytes_per_rank: int
    where: str


def _parts(placements: Sequence[TensorPlacement], stage: int, world_size: int) -> list[_Part]:
    parts = []
    for group in GROUPS:
        for sharded in (True, False):
            found = [p for p in placements if p.group == group and p.sharded == sharded]
            if found:
                parts.append(
                    _Part(
                        group,
                        len(found),
                        sum(p.num_elements for p in found),
                        sum(p.bytes_per_rank(world_size, stage) for p in found),
                        "sharded" if sharded else "replicated",
                    )
                )
    deltas = [p for p in placements if p.group == "deltas"]
    num_deltas = sum(p.num_elements for p in deltas)
    partitions = world_size if stage else 1
    optimizer_bytes = -(-num_deltas // partitions) * 12  # fp32 master, exp_avg, exp_avg_sq
    where = "sharded" if stage else "replicated"
    optimizer = _Part("optimizer (fp32)", 3 * len(deltas), 3 * num_deltas, optimizer_bytes, where)
    return [*parts, optimizer]


def placement_table(placements: Sequence[TensorPlacement], *, stage: int, world_size: int) -> str:
    """Return the placement as a table: group, tensors, parameters, bytes per rank, where."""
    parts = _parts(placements, stage, world_size)
    rows = [("group", "tensors", "parameters", "bytes per rank", "placement")]
    for part in parts:
        numbers = (f"{part.num_parameters:,}", f"{part.bytes_per_rank:,}")
        rows.append((part.group, str(part.num_tensors), *numbers, part.where))
    rows.append(("total", "", "", f"{sum(part.bytes_per_rank for part in parts):,}", ""))
    return text_table(rows, left=(0, 4))


def placement_text(placements: Sequence[TensorPlacement], *, stage: int, world_size: int) -> str:
    """Return in a line what each rank holds."""
    parts = _parts(placements, stage, world_size)
    shown = [f"{part.group} {format_bytes(part.bytes_per_rank)} {part.where}" for part in parts]
    total = format_bytes(sum(part.bytes_per_rank for part in parts))
    return f"Each rank holds {total}: {', '.join(shown)}"
