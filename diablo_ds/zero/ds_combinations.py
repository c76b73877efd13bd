"""Settings of a DeepSpeed config file that depend on each other, or on what this program does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diablo_ds.errors import UserError

_OF_CPU_ADAM = {"ratio": 1, "super_offload": False, "cpuadam_cores_perc": 0.8}
"""Keys of an offloaded optimizer that DeepSpeedCPUAdam alone heeds, with their defaults."""
_FINDING_NON_FINITE = ("zero_optimization.compute_grad_norm", "bf16.check_grad_overflow")
"""Settings without which DeepSpeed updates with gradients that are not finite."""
_LEAST = {
    **{f"fp16.{key}": 1 for key in ("loss_scale_window", "hysteresis", "min_loss_scale")},
    "fp16.initial_scale_power": 0,
    **{f"zero_optimization.{key}": 1 for key in ("sub_group_size", "zero_hpz_partition_size")},
}


def check_combinations(values: Mapping[str, Any], path: Path) -> None:
    """Check what a single value does not tell, in a file whose sections are known.

    Raises:
        UserError: if two settings contradict each other, or one this program.
    """
    zero = values.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    devices = {}
    for key in ("offload_param", "offload_optimizer"):
        devices[key] = (zero.get(key) or {}).get("device", "none")
        if devices[key] != "none" and stage != 3:
            raise UserError(f"{key} is supported with ZeRO stage 3; got stage={stage} in {path}")
    if "aio" in values and "nvme" not in devices.values():
        raise UserError(
            f"aio has no effect without offload to NVMe; got it in {path}; remove it, or see "
            "ds_configs/zero3_nvme.json"
        )
    offload = zero.get("offload_optimizer") or {}
    for key, default in _OF_CPU_ADAM.items():
        if offload.get(key, default) != default:
            raise UserError(
                f"offload_optimizer.{key} needs DeepSpeed's own optimizer, and here it is torch's "
                f"AdamW; got {key}={offload[key]} in {path}; remove it"
            )
    for name in _FINDING_NON_FINITE:
        section, key = name.split(".")
        if not values.get(section, {}).get(key, True):
            raise UserError(
                "the gradient norm must be computed and checked before each update; got "
                f"{key}=false in {path}; remove it"
            )
    for name, least in _LEAST.items():
        section, key = name.split(".")
        value = values.get(section, {}).get(key, least)
        if value != "auto" and value < least:
            raise UserError(f"{name} must be at least {least}; got {value} in {path}")
