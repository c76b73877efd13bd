"""What batches of an evaluated model may look like, and how rows are put into one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BatchRules:
    """How rows of a batch are kept apart; see `diablo_ds.model.batching_proof`."""

    pads_left: bool = True
    """Whether padding on the left, masked, changes nothing; otherwise rows have equal lengths."""
    caches: bool = True
    """Whether tokens after the prompt can be put through the model alone, with a cache."""
    extends: bool = True
    """Whether several of them can be at once."""
    shares_opening: bool = True
    """Whether padding between a cache that rows share and their own tokens changes nothing."""
    pads_right: bool = True
    """Whether padding on the right, not masked, changes nothing; else rows have equal lengths."""

    def describe(self) -> str:
        """Return a clause for the user about what makes answers slower; empty for nothing."""
        if not self.caches:
            return "its cache changes them, so that all tokens are put through for each new one"
        if not self.pads_left:
            return "padding changes them, so that only prompts of equal length share a batch"
        if not self.extends:
            return "its cache takes one token at a time, so that choices do not share their prompt"
        return ""


@dataclass(frozen=True)
class BatchLimits:
    """How large batches may be; at least one row is always taken."""

    cache_tokens: int
    """Columns of the cache times rows, at the end of the longest answer."""
    forward_tokens: int
    """Tokens of a forward's input, padding included."""
    logit_rows: int
    """Positions whose logits are there at once."""
    rows: int
    """Rows whose answers are generated at once."""

    def in_powers_of_two(self) -> BatchLimits:
        """Return the limits rounded down, so that a little less memory makes no other batches."""
        values = dataclasses.asdict(self)
        return BatchLimits(**{name: 1 << (n.bit_length() - 1) for name, n in values.items()})


def left_padded(
    rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, mask and positions of rows that are padded on the left.

    Args:
        rows: token ids of each.
        device: of the tensors.

    Returns:
        Three tensors ``[batch, seq]``, int64; the mask is 1 for tokens and 0 for padding.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    lengths = torch.tensor([[len(row)] for row in rows], device=device)
    positions = torch.arange(width, device=device) - (width - lengths)
    return ids, (positions >= 0).long(), positions.clamp(min=0)


def grouped(
    lengths: Sequence[int],
    costs: Sequence[int],
    limits: BatchLimits,
    *,
    equal_lengths: bool,
    most_rows: int | None = None,
) -> list[list[int]]:
    """Cut rows into batches of similar length, the longest first.

    Args:
        lengths: tokens of each row's input.
        costs: logits that each row needs; those of a batch are as many as the row with the most.
        limits: how large batches may be.
        equal_lengths: whether rows of a batch must have the same length.
        most_rows: rows of a batch, at most; None for no bound.

    Returns:
        The indices of each batch's rows.
    """
    groups: list[list[int]] = []
    width = most = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        fits = bool(groups) and (not equal_lengths or lengths[index] == width)
        if fits:
            count = len(groups[-1]) + 1
            fits = count * width <= limits.forward_tokens and count <= (most_rows or count)
            fits = fits and count * max(most, costs[index]) <= limits.logit_rows
        if not fits:
            groups.append([])
            width, most = lengths[index], 0
        groups[-1].append(index)
        most = max(most, costs[index])
    return groups
