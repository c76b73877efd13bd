"""Which attention kernels a model gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diablo_ds.errors import UserError
from diablo_ds.model.varlen import VARLEN, has_varlen_kernel, takes_heads

FLASH_ATTENTION = "flash_attention"


def attentions_by_length() -> tuple[str, ...]:
    """Return the attentions of variable length that this machine can use, the best first.

    FlashAttention's packages, newest first, and then PyTorch's own kernel.
    """
    import transformers.utils as utils

    found = {
        "flash_attention_3": utils.is_flash_attn_3_available(),
        "flash_attention_2": utils.is_flash_attn_2_available(),
        VARLEN: has_varlen_kernel(),
    }
    return tuple(name for name, is_installed in found.items() if is_installed)


def choose_attention(
    setting: str,
    meta_model: Any,
    precision: str,
    device_type: str,
    installed: Sequence[str],
    *,
    packing: bool = False,
) -> str:
    """Return the name of the attention that transformers shall use.

    Args:
        setting: "auto" or a name. On a GPU in half precision auto takes the newest FlashAttention
            package that is installed, or else, for packed rows, PyTorch's own kernel of variable
            length. Otherwise it takes what transformers takes, PyTorch's other kernels.
        meta_model: the model on the meta device.
        precision: "bf16", "fp16" or "fp32".
        device_type: "cuda" or "cpu".
        installed: attentions of variable length that can be used, the best first.
        packing: whether rows hold several examples. Without, PyTorch's other kernels need no mask
            either.

    Raises:
        UserError: if the attention cannot run here, or the model does not support it.
    """
    fits_device = device_type == "cuda" and precision != "fp32"
    if setting == "auto":
        for name in installed if fits_device else ():
            if (packing or name != VARLEN) and _supports(meta_model, name):
                return name
        default: str = meta_model.config.get_text_config()._attn_implementation
        return default
    if takes_lengths(setting):
        if not fits_device:
            raise UserError(
                f"{setting} needs a GPU and half precision; got precision={precision!r} on "
                f"{device_type}; use sdpa"
            )
        if setting not in installed:
            needed = (
                "PyTorch 2.11 or later and a GPU of compute capability 8.0 or later"
                if setting == VARLEN
                else "its package"
            )
            raise UserError(
                f"{setting} needs {needed}; got {', '.join(installed) or 'none'} installed; "
                "use sdpa"
            )
    if not _supports(meta_model, setting):
        raise UserError(
            f"attention must be one that the model supports; got attention={setting!r} for model "
            f"type {meta_model.config.model_type!r}; use auto"
        )
    return setting


def _supports(meta_model: Any, name: str) -> bool:
    if name == "eager":
        return True
    if name == "sdpa":
        return bool(getattr(meta_model, "_supports_sdpa", False))
    supports_flash = bool(getattr(meta_model, "_supports_flash_attn", False))
    if name != VARLEN:
        return supports_flash
    # Not all models look their attention up where others can be registered.
    looks_up = bool(getattr(meta_model, "_supports_attention_backend", False))
    return supports_flash and looks_up and takes_heads(meta_model.config.get_text_config())


def takes_lengths(attention: str) -> bool:
    """Return whether an attention tells packed examples apart by their lengths, without a mask."""
    return attention.startswith(FLASH_ATTENTION) or attention == VARLEN


def attends_by_variable_length(model: Any) -> bool:
    """Return whether packed examples are told apart by their lengths instead of by a mask."""
    name = model.config.get_text_config()._attn_implementation
    return takes_lengths(str(name))


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
