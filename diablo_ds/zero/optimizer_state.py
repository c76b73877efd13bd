"""The optimizer's state, as full fp32 tensors by delta name, at any ZeRO stage and world size.

DeepSpeed keeps master copies and AdamW's moments as flat partitions whose layout depends on stage
and world size. Here they are gathered for a checkpoint, and dealt out again to a fresh engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diablo_ds.ranks import distributed
from diablo_ds.zero.private.optimizers import (
    flat_masters,
    inner_optimizer,
    link_moments,
    loss_scaler_numbers,
    own_masters,
    own_part,
    replicated_masters,
)

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, as torch names them."""
STATE_KEYS = ("master", *MOMENTS)
"""Per delta: fp32 master copy and AdamW's two moments."""
DeltaState = dict[str, dict[str, Tensor]]
"""By delta name, then by `STATE_KEYS`: ``[num_blocks, in_block, out_block]``, fp32."""


def gather_state(ds_engine: Any, deltas: Mapping[str, nn.Parameter]) -> DeltaState:
    """Collect fp32 master and AdamW moments of every delta on the CPU of rank 0.

    Collective: every rank must call this.

    Returns:
        The state on rank 0, nothing on other ranks. Moments are zero before the first step.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    result: DeltaState = {}
    has_moments = num_optimizer_steps(ds_engine) > 0
    masters = replicated_masters(ds_engine, deltas)
    for name, delta in deltas.items():
        if masters is not None:
            master = masters[name]
            state = inner_optimizer(ds_engine).state.get(master, {})
            values = [master, *(state.get(key) for key in MOMENTS)]
        else:
            values = [safe_get_full_fp32_param(delta)]
            values += [
                safe_get_full_optimizer_state(delta, key) if has_moments else None
                for key in MOMENTS
            ]
        if distributed.is_main_process():
            full = [torch.zeros_like(values[0]) if value is None else value for value in values]
            result[name] = {
                key: value.detach().float().cpu().clone()
                for key, value in zip(STATE_KEYS, full, strict=True)
            }
    return result


def num_optimizer_steps(ds_engine: Any) -> int:
    """Return AdamW's own step count, which decides its bias correction."""
    for state in inner_optimizer(ds_engine).state.values():
        if "step" in state:
            return int(state["step"])
    return 0


def missing_moment_bytes(ds_engine: Any, deltas: Mapping[str, nn.Parameter]) -> int:
    """Return the bytes of moments on the device that AdamW makes in its first step."""
    state = inner_optimizer(ds_engine).state
    return sum(
        len(MOMENTS) * master.numel() * master.element_size()
        for master in own_masters(ds_engine, deltas)
        if master not in state and master.device.type == torch.device(ds_engine.device).type
    )


def restore_state(
    ds_engine: Any,
    deltas: Mapping[str, nn.Parameter],
    saved: Mapping[str, Mapping[str, Tensor]],
    num_steps: int,
) -> None:
    """Put master copies and AdamW moments back into a fresh engine, at any stage and world size.

    The deltas themselves must have been loaded before the engine was built.

    Args:
        ds_engine: DeepSpeed's engine, which has taken no step.
        deltas: the trainable parameters by name.
        saved: as returned by `gather_state`, the same on every rank.
        num_steps: AdamW's step count.
    """
    masters = replicated_masters(ds_engine, deltas)
    if masters is not None:
        for name, master in masters.items():
            master.data.copy_(saved[name]["master"])
            _create_moments(ds_engine, [master], num_steps)
            for key in MOMENTS:
                inner_optimizer(ds_engine).state[master][key].copy_(saved[name][key])
        return
    _create_moments(ds_engine, flat_masters(ds_engine), num_steps)
    link_moments(ds_engine)
    for name, delta in deltas.items():
        for key in STATE_KEYS:
            _set_partition(ds_engine, delta, saved[name][key], key)


def _set_partition(ds_engine: Any, delta: Any, value: Tensor, key: str) -> None:
    """Copy this rank's part of a full fp32 tensor into the optimizer."""
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if ds_engine.zero_optimization_stage() < 3:
        value = value.to(ds_engine.device)
        if key == "master":
            safe_set_full_fp32_param(delta, value)
        else:
            safe_set_full_optimizer_state(delta, value, key)
        return
    part = own_part(ds_engine, delta, value)
    if key == "master":
        safe_set_local_fp32_param(delta, part)
    else:
        safe_set_local_optimizer_state(delta, part, key)


def _create_moments(ds_engine: Any, masters: list[Tensor], num_steps: int) -> None:
    state = inner_optimizer(ds_engine).state
    for master in masters:
        state[master] = {
            "step": torch.tensor(float(num_steps)),
            **{key: torch.zeros_like(master) for key in MOMENTS},
        }


def loss_scaler_state(ds_engine: Any) -> dict[str, float]:
    """Return the numbers of the dynamic loss scaler, for a checkpoint; empty unless in fp16."""
    if not ds_engine.fp16_enabled():
        return {}
    return {
        name: value
        for name, value in loss_scaler_numbers(ds_engine).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def restore_loss_scaler(ds_engine: Any, state: Mapping[str, float]) -> None:
    """Put back what `loss_scaler_state` returned."""
    if ds_engine.fp16_enabled():
        loss_scaler_numbers(ds_engine).update(state)
