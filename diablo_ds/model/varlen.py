"""Causal attention of packed rows by PyTorch's own kernel of variable length.

Examples that lie one after the other in a single row are told apart by where they start, so that
no mask is built and no score between two examples is computed. On a CPU, where PyTorch has no such
kernel, the same function computes the same with `scaled_dot_product_attention`: that is what the
proof before a run and the tests go by.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diablo_ds.data.masks import example_mask
from diablo_ds.errors import UserError

VARLEN = "varlen"
"""Its name in transformers, and among the values of `--attention`."""
WIDEST_HEAD = 256
"""Widest attention head, in elements, that the kernel takes."""
_LEAST_CAPABILITY = (8, 0)
_HEAD_MULTIPLE = 8
_LACKING = ("softcap", "s_aux", "position_bias")
"""What other attentions compute and the kernel does not."""


class UnfitAttentionError(UserError):
    """A model asks its attention for what the kernel of variable length does not compute."""


def has_varlen_kernel() -> bool:
    """Return whether this machine's PyTorch and GPU have the kernel: from 2.11 and Ampere on."""
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return False
    if torch.cuda.get_device_capability() < _LEAST_CAPABILITY:
        return False
    if not torch.backends.cuda.is_flash_attention_available():
        return False
    return {"scale", "window_size"} <= _kernel_options()


def takes_heads(model_config: Any) -> bool:
    """Return whether the kernel takes heads as wide as a model's.

    Args:
        model_config: the Hugging Face config of the text model.
    """
    widths = [
        value
        for name, value in model_config.to_dict().items()
        if "head_dim" in name and isinstance(value, int)
    ]
    heads = getattr(model_config, "num_attention_heads", None)
    if not widths and isinstance(heads, int) and heads > 0:
        widths = [model_config.hidden_size // heads]
    return max(widths, default=0) <= WIDEST_HEAD


def varlen_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend causally inside each stretch of a row; called by transformers.

    Args:
        module: the attention module.
        query: ``[batch, heads, seq, head_dim]``.
        key: ``[batch, key_heads, seq, head_dim]``.
        value: ``[batch, key_heads, seq, value_dim]``.
        attention_mask: None.
        scaling: of the scores; 1 / sqrt(head_dim) by default.
        sliding_window: how many tokens a token sees, itself included; None or 0 for all.
        is_causal: True or None.
        cu_seq_lens_q: where the stretches of a single row start, and the row's end,
            ``[stretches + 1]``, int32; by default every row is one stretch.
        max_length_q: tokens of the longest stretch; given with the former.
        options: others, which must ask for nothing.

    Returns:
        ``[batch, seq, heads, value_dim]``, and None.

    Raises:
        UnfitAttentionError: if the model asks for more than the kernel computes.
    """
    batch, _, seq, head_dim = query.shape
    _check_options(attention_mask, options, is_causal=is_causal, has_cache=key.shape[2] != seq)
    if cu_seq_lens_q is None or max_length_q is None:
        cu_seq_lens_q = torch.arange(
            0, (batch + 1) * seq, seq, dtype=torch.int32, device=query.device
        )
        max_length_q = seq
    scale = head_dim**-0.5 if scaling is None else scaling
    value_dim = value.shape[-1]
    # Columns of zeros change no score; those of the output are cut off below.
    width = -(-max(head_dim, value_dim) // _HEAD_MULTIPLE) * _HEAD_MULTIPLE
    q, k, v = (_rows(x, width) for x in (query, key, value))  # [tokens, heads, width]
    attend: Callable[..., Tensor] = _by_kernel if q.is_cuda else _in_parts
    y = attend(q, k, v, cu_seq_lens_q, max_length_q, scale, sliding_window or 0)
    return y[..., :value_dim].unflatten(0, (batch, seq)), None


def register_varlen_attention() -> str:
    """Make `varlen_attention` known to transformers, and return its name there."""
    from transformers import AttentionInterface

    AttentionInterface.register(VARLEN, varlen_attention)
    return VARLEN


def _check_options(
    attention_mask: Tensor | None,
    options: dict[str, Any],
    *,
    is_causal: bool | None,
    has_cache: bool,
) -> None:
    found = [name for name in _LACKING if options.get(name) is not None]
    if options.get("dropout"):
        found.append(f"dropout={options['dropout']:g}")
    if attention_mask is not None:
        found.append("an attention mask")
    if is_causal is False:
        found.append("is_causal=False")
    if has_cache:
        found.append("a cache")
    if found:
        raise UnfitAttentionError(
            f"attention {VARLEN!r} needs a model whose attention is causal, without soft cap, "
            f"sink, bias, dropout, mask or cache; got {', '.join(found)}; use --attention sdpa"
        )


def _rows(x: Tensor, width: int) -> Tensor:
    """Return ``[batch, heads, seq, dim]`` as ``[batch * seq, heads, width]``."""
    rows = x.transpose(1, 2).flatten(0, 1)
    return rows if rows.shape[-1] == width else F.pad(rows, (0, width - rows.shape[-1]))


@lru_cache
def _kernel_options() -> frozenset[str]:
    """Return the options of PyTorch's kernel; none where it has no such kernel."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _knows_groups() -> bool:
    """Return whether the kernel takes fewer heads of keys; called, not traced, by compilers."""
    return "enable_gqa" in _kernel_options()


def _by_kernel(
    q: Tensor, k: Tensor, v: Tensor, edges: Tensor, longest: int, scale: float, window: int
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {}
    if _knows_groups():
        options["enable_gqa"] = True
    elif q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    left = window - 1 if window else -1  # besides the token itself
    y = varlen_attn(
        q, k, v, edges, edges, longest, longest, scale=scale, window_size=(left, 0), **options
    )
    return y if isinstance(y, Tensor) else y[0]  # a pair only where more is asked for


def _in_parts(
    q: Tensor, k: Tensor, v: Tensor, edges: Tensor, longest: int, scale: float, window: int
) -> Tensor:
    """Return what `_by_kernel` computes, one stretch at a time."""
    parts = []
    lengths = edges.diff().tolist()
    for stretch in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):
        query, key, value = (x.transpose(0, 1)[None] for x in stretch)  # [1, heads, tokens, width]
        mask = None
        if window and window < query.shape[2]:
            positions = torch.arange(query.shape[2], device=q.device)[None]
            mask = example_mask(positions, window=window)  # [1, 1, tokens, tokens]
        y = F.scaled_dot_product_attention(
            query, key, value, mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
        parts.append(y[0].transpose(0, 1))
    return torch.cat(parts)
