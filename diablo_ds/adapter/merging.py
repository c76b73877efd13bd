"""Adding deltas to the base weights permanently, and subtracting them again."""

from __future__ import annotations

from torch import nn

from diablo_ds.adapter.attach import diablo_layers


def merge(model: nn.Module) -> None:
    """Add every delta to its base weight, in place. The weights must not be partitioned."""
    for layer in diablo_layers(model).values():
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Undo `merge`, up to the rounding of the weights' dtype."""
    for layer in diablo_layers(model).values():
        layer.unmerge()
