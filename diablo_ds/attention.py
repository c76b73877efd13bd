"""Which attention kernels a model gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FLASH_ATTENTION = "flash_attention"


def installed_flash_attention() -> tuple[str, ...]:
    """Return the FlashAttention packages that this machine can use, newest first."""
    import transformers.utils as utils

    found = {
        "flash_attention_3": utils.is_flash_attn_3_available(),
        "flash_attention_2": utils.is_flash_attn_2_available(),
    }
    return tuple(name for name, is_installed in found.items() if is_installed)


def choose_attention(
    setting: str,
    shapes: Any,
    precision: str,
    device_type: str,
    installed: Sequence[str],
) -> str:
    """Return the name of the attention that transformers shall use.

    Args:
        setting: "auto" or a name. Auto takes the newest FlashAttention package that is installed,
            on a GPU in half precision; else what transformers takes, PyTorch's own kernels.
        shapes: the model on the meta device.
        precision: "bf16", "fp16" or "fp32".
        device_type: "cuda" or "cpu".
        installed: FlashAttention packages that can be used, newest first.

    Raises:
        ValueError: if the attention cannot run here, or the model does not support it.
    """
    fits_flash = device_type == "cuda" and precision != "fp32"
    supports_flash = getattr(shapes, "_supports_flash_attn", False)
    if setting == "auto":
        if fits_flash and supports_flash and installed:
            return installed[0]
        default: str = shapes.config.get_text_config()._attn_implementation
        return default
    if setting.startswith(FLASH_ATTENTION):
        if not fits_flash:
            raise ValueError(
                f"{setting} needs a GPU and half precision; got precision={precision!r} on "
                f"{device_type}; use sdpa"
            )
        if setting not in installed:
            raise ValueError(
                f"{setting} needs its package; got {', '.join(installed) or 'none'} installed; "
                "use sdpa"
            )
    supports_sdpa = getattr(shapes, "_supports_sdpa", False)
    if not {"sdpa": supports_sdpa, "eager": True}.get(setting, supports_flash):
        raise ValueError(
            f"attention must be one that the model supports; got attention={setting!r} for model "
            f"type {shapes.config.model_type!r}; use auto"
        )
    return setting


def attends_by_variable_length(model: Any) -> bool:
    """Return whether packed examples are told apart by their lengths instead of by a mask."""
    name: str = model.config.get_text_config()._attn_implementation
    return name.startswith(FLASH_ATTENTION)


def attention_by_length(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return what a kernel of variable length computes, slowly: causal attention in each stretch.

    Args:
        module: the attention module.
        query: ``[1, heads, seq, head_dim]``; other batch sizes where no lengths are given.
        key: ``[1, key_heads, seq, head_dim]``.
        value: ``[1, key_heads, seq, value_dim]``.
        attention_mask: ignored, as by those kernels.
        scaling: of the scores; 1 / sqrt(head_dim) by default.
        options: where stretches start (``cu_seq_lens_q``) or, instead, ``position_ids``.

    Returns:
        ``[1, seq, heads, value_dim]``, and None.
    """
    edges, positions = options.get("cu_seq_lens_q"), options.get("position_ids")
    if edges is None and positions is not None and positions.dim() == 2 and len(query) == 1:
        starts = torch.nonzero(positions[0] == 0)[:, 0]
        edges = torch.cat([starts, starts.new_tensor([query.shape[2]])])
    lengths = [query.shape[2]] if edges is None else edges.diff().tolist()
    parts = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        for q, k, v in zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def register_attention_by_length() -> str:
    """Make `attention_by_length` known to transformers, and return its name there."""
    from transformers import AttentionInterface

    name = f"{FLASH_ATTENTION}_by_length"
    AttentionInterface.register(name, attention_by_length)
    return name
