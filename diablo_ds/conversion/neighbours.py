"""The two numbers of a dtype around an exact value, and stochastic rounding to one of them.

Rounding to nearest swallows a delta smaller than half a step of the dtype, however many weights
have one. Stochastic rounding takes the farther neighbour with the probability that makes the mean
of the result exact (Gupta et al., Deep Learning with Limited Numerical Precision, ICML 2015): a
weight is off by up to a step in place of half a step, but sums over many weights keep the deltas.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDED_DTYPES = (torch.bfloat16, torch.float16)
"""Those that stochastic rounding can be asked for."""


def neighbours(exact: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the nearest number of a dtype, and the one on the other side of the exact value.

    Args:
        exact: fp32 or fp64.
        dtype: one of `ROUNDED_DTYPES`.

    Returns:
        Two tensors of that dtype. Where the exact value is a number of the dtype, both are that.
    """
    nearest = exact.to(dtype)
    value = nearest.to(exact.dtype)
    # As integers, numbers of one sign follow each other by magnitude, zero and infinity included.
    step = (exact.abs() > value.abs()).to(torch.int16) - (exact.abs() < value.abs()).to(torch.int16)
    other = (nearest.view(torch.int16) + step).view(dtype)
    return nearest, other


def round_stochastically(exact: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Round to one of two neighbours at random, so that the mean of the result is exact.

    Args:
        exact: fp32 or fp64.
        dtype: one of `ROUNDED_DTYPES`.
        generator: of the random numbers, on the device of ``exact``.
    """
    nearest, other = neighbours(exact, dtype)
    value = nearest.to(exact.dtype)
    gap = (other.to(exact.dtype) - value).abs()
    share = torch.where(gap > 0, (exact - value).abs() / gap, 0)
    draw = torch.rand(exact.shape, generator=generator, device=exact.device)
    return torch.where(draw < share, other, nearest)
