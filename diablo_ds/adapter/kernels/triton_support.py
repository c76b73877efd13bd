"""Whether Triton's kernels can be used here: the package, the device, the dtype."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

from diablo_ds.errors import UserError

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WITHOUT_TRITON = {"triton": "fused", "triton_summed": "summed", "triton_prefilled": "prefilled"}
"""The path that computes the same with PyTorch's products; a run may go on with it."""


@functools.cache
def has_package() -> bool:
    """Return whether the package triton is installed; does not import it."""
    return importlib.util.find_spec("triton") is not None


def is_interpreted() -> bool:
    """Return whether Triton's interpreter runs kernels, on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def is_available() -> bool:
    """Return whether the kernels can run here: on a GPU, or interpreted."""
    return has_package() and (torch.cuda.is_available() or is_interpreted())


def check_usable(path: str, device_type: str, *, has_triton: bool, where: str = "") -> None:
    """Raise UserError unless a path of Triton's can run on a device.

    Args:
        path: the delta path, for the message.
        device_type: "cuda", "cpu" and so on.
        has_triton: whether the package is installed there.
        where: the host, for the message.
    """
    if has_triton and (device_type == "cuda" or is_interpreted()):
        return
    installed = "installed" if has_triton else "not installed"
    raise UserError(
        f"delta_path {path!r} needs a GPU and the package triton; got device {device_type}, triton "
        f"{installed}{where}; use {WITHOUT_TRITON[path]!r}"
    )


def check_operand(path: str, x: Tensor) -> None:
    """Raise UserError unless a path of Triton's takes a tensor's device and dtype."""
    if not x.is_cuda:
        check_usable(path, x.device.type, has_triton=has_package())
    if x.dtype not in DTYPES:
        raise UserError(
            f"delta_path {path!r} needs bf16, fp16 or fp32; got dtype={x.dtype}; use "
            f"{WITHOUT_TRITON[path]!r}"
        )
