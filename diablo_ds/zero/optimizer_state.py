"""The optimizer's state, as whole fp32 tensors by delta name, at any ZeRO stage and world size.

DeepSpeed keeps master copies and AdamW's moments as flat partitions whose layout depends on stage
and world size. Here they are gathered for a checkpoint, and dealt out again to a fresh engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diablo_ds.ranks import distributed
from diablo_ds.zero.engine import has_plain_optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, as torch names them."""
STATE_KEYS = ("master", *MOMENTS)
"""Per delta: fp32 master copy and AdamW's two moments."""


def gather_state(engine: Any, deltas: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Tensor]]:
    """Collect fp32 master and AdamW moments of every delta on the CPU of rank 0.

    Collective: every rank must call this.

    Returns:
        By delta name, then by `STATE_KEYS`: ``[num_blocks, in_block, out_block]``, fp32. Empty
        except on rank 0. Moments are zero before the first step.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    result: dict[str, dict[str, Tensor]] = {}
    stepped = num_optimizer_steps(engine) > 0
    local = _local_masters(engine, deltas)
    for name, delta in deltas.items():
        if local is not None:
            master = local[name]
            state = _inner_optimizer(engine).state.get(master, {})
            values = [master, *(state.get(key) for key in MOMENTS)]
        else:
            values = [safe_get_full_fp32_param(delta)]
            values += [
                safe_get_full_optimizer_state(delta, key) if stepped else None for key in MOMENTS
            ]
        if distributed.is_main_process():
            whole = [torch.zeros_like(values[0]) if v is None else v for v in values]
            result[name] = {
                key: value.detach().float().cpu().clone()
                for key, value in zip(STATE_KEYS, whole, strict=True)
            }
    return result


def num_optimizer_steps(engine: Any) -> int:
    """Return AdamW's own step count, which decides its bias correction."""
    for state in _inner_optimizer(engine).state.values():
        if "step" in state:
            return int(state["step"])
    return 0


def restore_state(
    engine: Any,
    deltas: Mapping[str, nn.Parameter],
    saved: Mapping[str, Mapping[str, Tensor]],
    num_steps: int,
) -> None:
    """Put master copies and AdamW moments back into a fresh engine, at any stage and world size.

    The deltas themselves must have been loaded before the engine was built.

    Args:
        engine: an engine that has taken no step.
        deltas: the trainable parameters by name.
        saved: as returned by `gather_state`, the same on every rank.
        num_steps: AdamW's step count.
    """
    local = _local_masters(engine, deltas)
    if local is not None:
        for name, master in local.items():
            master.data.copy_(saved[name]["master"])
            _create_moments(engine, [master], num_steps)
            for key in MOMENTS:
                _inner_optimizer(engine).state[master][key].copy_(saved[name][key])
        return
    _create_moments(engine, _flat_masters(engine), num_steps)
    if engine.zero_optimization_stage() < 3:
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    for name, delta in deltas.items():
        for key in STATE_KEYS:
            _set_partition(engine, delta, saved[name][key], key)


def _set_partition(engine: Any, delta: Any, value: Tensor, key: str) -> None:
    """Copy this rank's part of a whole fp32 tensor into the optimizer."""
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if engine.zero_optimization_stage() < 3:
        value = value.to(engine.device)
        if key == "master":
            safe_set_full_fp32_param(delta, value)
        else:
            safe_set_full_optimizer_state(delta, value, key)
        return
    # DeepSpeed pads a tensor that the world size does not divide; its full setter does not.
    size = delta.ds_tensor.ds_numel
    flat = torch.nn.functional.pad(
        value.flatten(), (0, size * engine.dp_world_size - value.numel())
    )
    part = flat.narrow(0, size * distributed.rank(), size)
    if key == "master":
        safe_set_local_fp32_param(delta, part)
    else:
        safe_set_local_optimizer_state(delta, part, key)


def _create_moments(engine: Any, masters: list[Tensor], num_steps: int) -> None:
    state = _inner_optimizer(engine).state
    for master in masters:
        state[master] = {
            "step": torch.tensor(float(num_steps)),
            **{key: torch.zeros_like(master) for key in MOMENTS},
        }


def _inner_optimizer(engine: Any) -> Any:
    return engine.optimizer if has_plain_optimizer(engine) else engine.optimizer.optimizer


def _local_masters(engine: Any, deltas: Mapping[str, nn.Parameter]) -> dict[str, Tensor] | None:
    """Return the fp32 masters by delta name where each rank holds them whole: stage 0."""
    if engine.zero_optimization_stage():
        return None
    if has_plain_optimizer(engine):
        return dict(deltas)
    masters = [master for group in engine.optimizer.fp32_groups for master in group]
    return dict(zip(deltas, masters, strict=True))


def _flat_masters(engine: Any) -> list[Tensor]:
    if engine.zero_optimization_stage() == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return list(engine.optimizer.single_partition_of_fp32_groups)


def loss_scaler_state(engine: Any) -> dict[str, float]:
    """Return the numbers of the dynamic loss scaler, for a checkpoint; empty unless in fp16."""
    if not engine.fp16_enabled():
        return {}
    return {
        name: value
        for name, value in vars(engine.optimizer.loss_scaler).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def restore_loss_scaler(engine: Any, state: Mapping[str, float]) -> None:
    """Put back what `loss_scaler_state` returned."""
    if engine.fp16_enabled():
        vars(engine.optimizer.loss_scaler).update(state)


MOMENTS = ("exp_avg", "exp_avg_sq")
