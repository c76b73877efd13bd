"""What each ZeRO stage keeps where, in words; light, so that reports of runs import nothing big."""

from __future__ import annotations

STAGES = (
    "base, gradients and optimizer state on every rank",
    "base on every rank, optimizer state sharded",
    "base on every rank, gradients and optimizer state sharded",
    "base and optimizer state sharded",
)
"""By stage. Deltas and, of the base, vectors such as norms are on every rank at each of them."""
