"""Attention masks for models that do not separate examples by their positions alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

NONE, PADDING, EXAMPLES = "none", "padding", "examples"


@dataclass(frozen=True)
class MaskRule:
    """Which attention mask a micro batch has."""

    kind: str = NONE
    """`NONE`; `PADDING`, ones for tokens and zeros for padding; or `EXAMPLES`, block-diagonal:
    causal inside each example of a packed row."""
    windows: Mapping[str, int] = field(default_factory=dict)
    """Layer types with masks of their own, and their windows in tokens, 0 for no window; empty if
    all layers take the same mask."""
    additive: torch.dtype | None = None
    """Dtype of a mask that is added to the scores; None for a boolean mask."""

    def num_bytes(self, num_rows: int, width: int) -> int:
        """Return the bytes of a micro batch's mask."""
        element_bytes = self.additive.itemsize if self.additive else 1
        examples_bytes = num_rows * width * width * element_bytes * max(1, len(self.windows))
        return {NONE: 0, PADDING: 8 * num_rows * width, EXAMPLES: examples_bytes}[self.kind]

    def for_examples(self, position_ids: Tensor) -> Any:
        """Return the mask of packed rows, ``[batch, 1, seq, seq]``, or one per layer type.

        Args:
            position_ids: ``[batch, seq]``, restarted at 0 in each example.
        """

        def mask(window: int) -> Tensor:
            seen = example_mask(position_ids, window=window)
            return additive(seen, self.additive) if self.additive else seen

        if not self.windows:
            return mask(0)
        return {layer_type: mask(window) for layer_type, window in self.windows.items()}


NO_MASK = MaskRule()


def padding_mask(num_tokens: Tensor, width: int) -> Tensor:
    """Return 1 for tokens and 0 for padding, ``[batch, width]`` in int64.

    Args:
        num_tokens: tokens of each row, ``[batch]``.
        width: tokens per row, with padding.
    """
    return (torch.arange(width) < num_tokens[:, None]).long()


def example_mask(position_ids: Tensor, *, window: int = 0) -> Tensor:
    """Return which tokens a token attends to: earlier ones of its own example, and itself.

    Args:
        position_ids: ``[batch, seq]``, restarted at 0 in each example.
        window: number of tokens that it attends to, itself included; 0 for all.

    Returns:
        Booleans, ``[batch, 1, seq, seq]``.
    """
    examples = (position_ids == 0).cumsum(1)  # [batch, seq]
    seen = (examples[:, :, None] == examples[:, None, :]).tril()  # [batch, seq, seq]
    if window:
        seen = seen.triu(1 - window)
    return seen[:, None]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a boolean mask to one of ``dtype`` that is added to the scores."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
