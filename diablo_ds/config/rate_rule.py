"""A rule for the peak learning rate of AdamW: it falls as one over the width of the blocks.

The output of a block is a sum over its inputs. AdamW moves each weight by about the learning rate
whatever the gradient's size, so that a step changes that sum in proportion to the number of inputs.

Measured with SmolLM2-135M on GSM8K (`python -m benchmarks.quality`, docs/method.md): from N = 4 to
96, best rate times inputs of a block is the same, 0.144, to a factor of 2 between the rates tried;
and it is the same in trainings of 12 and of 48 steps. The rule takes half of it: that costs little
there, and the rates published for 7B models, whose trainings are longer, are lower yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

from diablo_ds.errors import UserError

RATE_TIMES_WIDTH = 0.072
"""Peak learning rate times inputs of a block."""


def choose_rate(widths: Sequence[int]) -> tuple[float, str]:
    """Return a peak learning rate, to two digits, and its reason.

    Args:
        widths: inputs of a block of each target layer; the rule goes by their median.

    Raises:
        UserError: if there is none.
    """
    if not widths:
        raise UserError("a learning rate by the rule needs a target layer; got none")
    width = median_low(widths)
    rate = float(f"{RATE_TIMES_WIDTH / width:.1e}")
    reason = f"the rule {RATE_TIMES_WIDTH:g} / {width}, the inputs of a block"
    return rate, f"{reason}; --learning-rate gives another"
