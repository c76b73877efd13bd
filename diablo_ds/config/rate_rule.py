"""A rule for the peak learning rate of AdamW, from the width of the blocks.

The output of a block is a sum over its inputs. AdamW moves each weight by about the learning rate
whatever the gradient's size, so that a step changes that sum in proportion to the number of inputs:
wider blocks need a lower rate. How much lower is measured, not derived.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

from diablo_ds.errors import UserError

REFERENCE_WIDTH = 9
"""Inputs of a block of SmolLM2-135M's layers of 576 inputs, with 64 blocks."""
REFERENCE_RATE = 2e-3
"""The best rate there."""
POWER = 0.7
"""By which the best rate falls with the width."""


def choose_rate(widths: Sequence[int]) -> tuple[float, str]:
    """Return a peak learning rate, to two digits, and its reason.

    Args:
        widths: inputs of a block of each target layer.

    Raises:
        UserError: if there is none.
    """
    if not widths:
        raise UserError("a learning rate by the rule needs a target layer; got none")
    width = median_low(widths)
    rate = float(f"{REFERENCE_RATE * (REFERENCE_WIDTH / width) ** POWER:.1e}")
    return rate, f"the rule for blocks of {width} inputs; --learning-rate gives another"
