"""ZeRO placement: the base sharded, the deltas replicated; decided by name, then verified.

DeepSpeed's stage 3 keeps a parameter whole between steps by its size alone
(`stage3_param_persistence_threshold`). The deltas of a large model are larger than its default,
and with few blocks larger than a frozen k or v weight, so no threshold is right. Here the choice
is by name: deltas and one-dimensional base parameters (norms, biases) are replicated, every base
matrix is sharded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from diablo_ds.files.text_table import text_table
from diablo_ds.ranks.log import logger

PERSISTENCE_THRESHOLD = "stage3_param_persistence_threshold"

TESTED_DEEPSPEED = (0, 19)
"""Version (major, minor) whose undocumented persistence list was tested with `make_persistent`."""


@dataclass(frozen=True)
class TensorPlacement:
    """Where one parameter lies between steps."""

    name: str
    group: str
    num_elements: int
    element_bytes: int
    sharded: bool

    def bytes_per_rank(self, world_size: int, stage: int) -> int:
        """Return what a rank holds: a shard under stage 3, the whole where replicated, or both."""
        shard = -(-self.num_elements // world_size) if stage == 3 else 0
        whole = 0 if self.sharded else self.num_elements
        return (shard + whole) * self.element_bytes


def can_place_by_name() -> bool:
    """Return whether the installed DeepSpeed is one whose persistence list was tested."""
    import deepspeed

    return tuple(int(part) for part in deepspeed.__version__.split(".")[:2]) == TESTED_DEEPSPEED


def size_threshold(deltas: Iterable[torch.Tensor]) -> int:
    """Return the fallback: the smallest persistence threshold that keeps every delta whole."""
    return max(delta.numel() for delta in deltas)


def expected_placement(
    model: nn.Module,
    deltas: Mapping[str, nn.Parameter],
    *,
    stage: int,
    threshold: int,
    by_name: bool = True,
) -> list[TensorPlacement]:
    """Return where each parameter has to lie.

    Args:
        model: the model with deltas attached; may be on the meta device.
        deltas: the deltas by parameter name.
        stage: ZeRO stage, 0 to 3.
        threshold: stage 3 also replicates base parameters of at most this many elements.
        by_name: whether placement is by name; otherwise by the threshold alone.
    """
    result = []
    for name, parameter in model.named_parameters():
        # A partitioned parameter's own shape is [0].
        shape = getattr(parameter, "ds_shape", parameter.shape)
        num_elements = shape.numel()
        group = (
            "deltas" if name in deltas else "base vectors" if len(shape) < 2 else "base matrices"
        )
        whole = num_elements <= threshold or (by_name and group != "base matrices")
        sharded = stage == 3 and not whole
        result.append(TensorPlacement(name, group, num_elements, parameter.element_size(), sharded))
    return result


def choose_placement(
    model: nn.Module,
    deltas: Mapping[str, nn.Parameter],
    ds_config: dict[str, Any],
    *,
    by_name: bool | None = None,
) -> list[TensorPlacement]:
    """Return where each parameter has to lie under a DeepSpeed config.

    Args:
        model: the model with deltas attached; may be on the meta device.
        deltas: the deltas by parameter name.
        ds_config: the complete DeepSpeed config; placement by size raises its threshold.
        by_name: whether to place by name or, the fallback, by size; by default, by name where the
            installed DeepSpeed was tested for it.
    """
    by_name = can_place_by_name() if by_name is None else by_name
    zero = ds_config["zero_optimization"]
    stage = int(zero.get("stage", 0))
    if stage == 3 and not by_name:
        least = size_threshold(deltas.values())
        zero[PERSISTENCE_THRESHOLD] = max(zero[PERSISTENCE_THRESHOLD], least)
        logger.warning(f"Placing by size: {PERSISTENCE_THRESHOLD}={zero[PERSISTENCE_THRESHOLD]}")
    threshold = zero.get(PERSISTENCE_THRESHOLD, 0)
    return expected_placement(model, deltas, stage=stage, threshold=threshold, by_name=by_name)


def make_persistent(engine: Any, parameters: Iterable[nn.Parameter], *, by_name: bool) -> None:
    """Keep parameters whole on every rank between steps, under ZeRO-3.

    Collective: every rank must call this with the same parameters, since they join the one
    all-gather that DeepSpeed does after each optimizer step.

    Args:
        engine: the DeepSpeed engine.
        parameters: what has to be whole.
        by_name: whether to add them to DeepSpeed's list; otherwise its size rule chose them.
    """
    persistent = engine.optimizer.persistent_parameters
    if by_name:
        known = {id(parameter) for parameter in persistent}
        added = [parameter for parameter in parameters if id(parameter) not in known]
        for parameter in added:
            parameter.ds_persist = True  # type: ignore[attr-defined]
        persistent.extend(added)
    gather_absent(persistent)


def gather_absent(parameters: Iterable[Any]) -> None:
    """Make those parameters whole that are partitioned now, under ZeRO-3.

    Collective: every rank must call this with the same parameters.
    """
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    absent = [p for p in parameters if p.ds_status == ZeroParamStatus.NOT_AVAILABLE]
    if absent:
        absent[0].all_gather(absent)


def verify_placement(
    model: nn.Module, expected: Iterable[TensorPlacement], *, stage: int, world_size: int, when: str
) -> None:
    """Raise RuntimeError if a parameter does not lie where it has to.

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
    wants_grad = placement.group == "deltas"
    if parameter.requires_grad != wants_grad:
        return f"{placement.name} has requires_grad={parameter.requires_grad}"
    if stage < 3:
        whole = parameter.numel() == placement.num_elements
        return None if whole else f"{placement.name} is not whole"
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    if not hasattr(parameter, "ds_status"):
        return f"{placement.name} was not taken over by ZeRO-3"
    shard = -(-placement.num_elements // world_size)
    if parameter.ds_tensor.numel() > shard:
        return f"{placement.name} has a shard of {parameter.ds_tensor.numel()}, not {shard}"
    wanted = ZeroParamStatus.NOT_AVAILABLE if placement.sharded else ZeroParamStatus.AVAILABLE
    if parameter.ds_status != wanted:
        return f"{placement.name} is {parameter.ds_status.name}, not {wanted.name}"
    if not placement.sharded and parameter.numel() != placement.num_elements:
        return f"{placement.name} holds {parameter.numel()} of {placement.num_elements} elements"
    return None


def placement_table(placements: list[TensorPlacement], *, stage: int, world_size: int) -> str:
    """Return the placement as a table: group, tensors, parameters, bytes per rank, where."""
    rows = [("group", "tensors", "parameters", "bytes per rank", "placement")]
    total = 0
    for group in ("base matrices", "base vectors", "deltas"):
        for sharded in (True, False):
            part = [p for p in placements if p.group == group and p.sharded == sharded]
            if part:
                num_bytes = sum(p.bytes_per_rank(world_size, stage) for p in part)
                total += num_bytes
                num_parameters = sum(p.num_elements for p in part)
                where = "sharded" if sharded else "replicated"
                rows.append((group, str(len(part)), f"{num_parameters:,}", f"{num_bytes:,}", where))
    deltas = [p for p in placements if p.group == "deltas"]
    num_deltas = sum(p.num_elements for p in deltas)
    partitions = world_size if stage else 1
    optimizer_bytes = -(-num_deltas // partitions) * 12  # fp32 master, exp_avg, exp_avg_sq
    total += optimizer_bytes
    where = "sharded" if stage else "replicated"
    rows.append(
        (
            "optimizer (fp32)",
            str(3 * len(deltas)),
            f"{3 * num_deltas:,}",
            f"{optimizer_bytes:,}",
            where,
        )
    )
    rows.append(("total", "", "", f"{total:,}", ""))
    return text_table(rows, left=(0, 4))
