"""Adding deltas to the base weights permanently, and subtracting them again."""

from __future__ import annotations

from torch import nn

from diablo_ds.adapter.attach import diablo_layers

LARGE_SHARE = 0.1
"""Share of a delta's elements swallowed by rounding from which whoever merges is warned."""


def merge(model: nn.Module) -> None:
    """Add every delta to its base weight, in place. The weights must not be partitioned."""
    for layer in diablo_layers(model).values():
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Undo `merge`, up to the rounding of the weights' dtype."""
    for layer in diablo_layers(model).values():
        layer.unmerge()
