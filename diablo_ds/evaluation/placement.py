"""Where an evaluated model is: a full copy on each rank, or shards over all of them."""

from __future__ import annotations

from typing import Any, Literal

import torch

from diablo_ds.errors import UserError
from diablo_ds.model.architecture import DTYPES, num_elements
from diablo_ds.model.bf16_speed import measure_bf16_factor
from diablo_ds.ranks import distributed
from diablo_ds.ranks.free_memory import free_bytes

Placement = Literal["auto", "copies", "sharded"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]

_ROOM_SHARE = 0.2
"""Share of the model's bytes that must be free besides for caches and activations."""


def choose_precision(given: str, shapes: Any, device: torch.device) -> tuple[str, str]:
    """Return the precision of weights and forwards, and why, for the user.

    Collective, where the ranks have joined: every rank must call this.

    Args:
        given: what the user chose, or "auto".
        shapes: the model on the meta device.
        device: this rank's.

    Raises:
        UserError: if it is fp16 on a CPU.
    """
    if given == "fp16" and device.type == "cpu":
        raise UserError("fp16 needs a GPU; got precision='fp16' on a CPU; use bf16 or fp32")
    if given != "auto":
        return given, "as given"
    if device.type != "cpu":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        everywhere = all(distributed.gather_values(has_bf16))
        return ("bf16", "the GPU has it") if everywhere else ("fp16", "the GPU has no bf16")
    factor = measure_bf16_factor(shapes.config.get_text_config().hidden_size)
    factor = max(distributed.gather_values(factor))
    reason = f"products in bf16 take {factor:.2g} times as long as in fp32 on this CPU"
    return ("bf16" if factor <= 1 else "fp32"), reason


def choose_placement(
    given: str, shapes: Any, precision: str, device: torch.device
) -> tuple[bool, str]:
    """Return whether a model is sharded over the ranks, and why, for the user.

    Collective, where the ranks have joined: every rank must call this.

    Args:
        given: what the user chose: "auto", "copies" or "sharded".
        shapes: the model on the meta device.
        precision: of the weights.
        device: this rank's.

    Raises:
        UserError: if it is to be sharded over one rank.
    """
    world_size = distributed.world_size()
    if given == "sharded" and world_size == 1:
        raise UserError(
            "a sharded model needs several ranks; got placement='sharded' on 1; start it by "
            "deepspeed launch/evaluate.py, or use auto"
        )
    needed = num_elements(shapes) * DTYPES[precision].itemsize * (1 + _ROOM_SHARE)
    free = float(free_bytes(device))
    if device.type == "cpu":
        free /= distributed.local_world_size()
    free = min(distributed.gather_values(free))
    what = f"{needed / 1e9:.1f} GB for the model and its caches, {free / 1e9:.1f} GB are free"
    if given != "auto":
        return given == "sharded", f"as given: {what}"
    if world_size == 1:
        return False, what
    return needed > free, f"{what} for each rank"
