"""What DeepSpeed supports on this machine; checked before anything is loaded."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diablo_ds.errors import UserError
from diablo_ds.files import owned
from diablo_ds.zero.ds_config import offload_device
from diablo_ds.zero.joining import import_deepspeed


def has_bf16(device: torch.device) -> bool:
    """Return whether a device has bf16 instructions."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(import_deepspeed().get_accelerator().is_bf16_supported())


def check_precision(precision: str, device_type: str, stage: int) -> None:
    """Raise UserError where a precision cannot be trained in, on this device or at this stage."""
    if precision != "fp16":
        return
    if device_type == "cpu":
        raise UserError("fp16 needs a GPU; got precision='fp16' on a CPU; use bf16 or fp32")
    if stage == 0:
        # DeepSpeed 0.19.8 divides the gradients by a loss scale that it did not apply.
        raise UserError(
            "fp16 needs ZeRO stage 1, 2 or 3; got precision='fp16' at stage 0; use "
            "ds_configs/zero1.json"
        )


def check_quantized(ds_config: Mapping[str, Any], device_type: str) -> None:
    """Raise UserError where gathers are to be quantised and DeepSpeed has no op for it."""
    for name in ("zero_quantized_weights", "zero_quantized_nontrainable_weights"):
        if ds_config.get("zero_optimization", {}).get(name) and device_type == "cpu":
            raise UserError(
                f"{name} needs a GPU: DeepSpeed's quantizer has no CPU version; got {name}=true; "
                "remove it"
            )


def check_offload(ds_config: Mapping[str, Any]) -> None:
    """Raise UserError where NVMe offload is wanted and libaio or the folder is missing.

    Others may write to the folder where its sticky bit keeps each entry its owner's.
    """
    zero = ds_config.get("zero_optimization", {})
    for what in ("param", "optimizer"):
        if offload_device(ds_config, what) != "nvme":
            continue
        folder = zero[f"offload_{what}"].get("nvme_path")
        if not folder or not os.path.isdir(folder):
            raise UserError(f"NVMe offload needs an existing folder; got nvme_path={folder!r}")
        owned.check_parent(Path(folder), "nvme_path")
        from deepspeed.ops.op_builder import AsyncIOBuilder

        with contextlib.redirect_stdout(io.StringIO()):
            is_usable = AsyncIOBuilder().is_compatible(verbose=False)
        if not is_usable:
            raise UserError(
                "NVMe offload needs libaio; got none; install the package libaio-dev, or use "
                "ds_configs/zero3_offload.json"
            )
