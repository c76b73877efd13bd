"""A merged model's tensors against base plus deltas, streamed from the files.

For each tensor the files must hold what one correct rounding gives. With ``W`` the base's weight,
``D`` the delta's matrix and ``u`` the unit roundoff of the merged dtype (2^-8 for bf16, 2^-11 for
fp16, 2^-24 for fp32), the sum in fp32 is ``S = (W + D)(1 + e)``, ``|e| <= 2^-24``, and rounding to
nearest gives ``|M - S| <= u |S| + t / 2``, where ``t`` is the dtype's smallest subnormal number.
Rounding to nearest is unique, so a correct merge has exactly ``round(S)``, and a weight that is not
is reported with its error as a multiple of that bound.

Stochastic rounding gives one of the two numbers next to ``S``: each of them is correct, and ``u``
and ``t / 2`` are twice as large here and below.

From this follows a bound of each layer's output, which is computed on random inputs in fp64 along
another path, the adapter's own product of blocks: with ``y = x W^T + x D`` and ``y' = x M^T``,

    |y' - y| <= (u + 2^-23) / (1 - u) * |x| |M|^T + t * sum |x|   over the diagonal blocks alone

(``W`` outside the blocks as it is in the merged dtype, to which a merge may convert it)

plus fp64's own rounding. It holds for every input, so it is exceeded only by a wrong merge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diablo_ds.adapter.blocks import BlockPart, block_parts
from diablo_ds.conversion.neighbours import neighbours
from diablo_ds.files.tensor_files import StoredTensor
from diablo_ds.files.tensor_rows import read_rows, row_ranges

_NUM_INPUTS = 4
_SMALLEST = {torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24, torch.float32: 2.0**-149}
_FP64_SLACK = 2.0**-44
"""Of sums of up to 2^8 times sqrt(n) roundings in fp64, relative to the sum of magnitudes."""


@dataclass(frozen=True)
class TensorCheck:
    """How a merged tensor compares with what it should be."""

    num_wrong: int = 0
    """Elements that are not the correctly rounded ones."""
    error: float = 0.0
    """The largest error of an element, as a multiple of the bound of one rounding."""
    output_error: float = 0.0
    """Of a layer: the largest error of an output, as a multiple of its bound."""


def check_copied(base: StoredTensor, merged: StoredTensor) -> TensorCheck:
    """Compare a tensor without a delta: equal to the base's, but for a conversion of its dtype."""
    num_wrong, error = 0, 0.0
    for rows in row_ranges(base):
        old, new = read_rows(base, rows), read_rows(merged, rows)
        wanted = old if old.dtype == new.dtype else old.to(new.dtype)
        if torch.equal(_bytes(wanted), _bytes(new)):
            continue
        wrong = (_bytes(wanted) != _bytes(new)).any(dim=-1)
        num_wrong += int(wrong.sum())
        error = max(error, _error(old[wrong], new[wrong], unit_roundoff(new.dtype)))
    return TensorCheck(num_wrong, error)


def check_merged(
    base: StoredTensor,
    merged: StoredTensor,
    delta: Tensor,
    generator: torch.Generator,
    *,
    is_stochastic: bool = False,
) -> TensorCheck:
    """Compare a layer's weight with base plus delta, and its outputs on random inputs.

    Args:
        base: weight ``[out_features, in_features]``.
        merged: the same, after the merge.
        delta: ``[num_blocks, in_block, out_block]``, fp32.
        generator: of the inputs.
        is_stochastic: whether the merge rounded at random to one of two numbers.
    """
    num_blocks, in_block, out_block = delta.shape
    x = torch.randn(_NUM_INPUTS, num_blocks * in_block, generator=generator).double()
    exact_dtype = torch.promote_types(base.dtype, torch.float32)
    num_wrong, error, output_error = 0, 0.0, 0.0
    for rows in row_ranges(base):
        old, new = read_rows(base, rows), read_rows(merged, rows)
        parts = list(block_parts(rows, in_block, out_block))
        exact = old.to(exact_dtype, copy=True)
        for part in parts:
            exact[part.rows, part.columns] += delta[part.block][:, part.outputs].t()
        places: list[Any] = [(part.rows, part.columns) for part in parts]
        if is_stochastic:
            nearest, other = neighbours(exact, new.dtype)
            wrong = (nearest != new) & (other != new)
        else:
            wrong = exact.to(new.dtype) != new
        if wrong.any():
            num_wrong += int(wrong.sum())
            places.append(wrong)
        u = unit_roundoff(new.dtype, is_stochastic=is_stochastic)
        error = max(error, *(_error(exact[place], new[place], u) for place in places))
        output_error = max(output_error, _output_error(x, old, new, delta, parts, u))
    return TensorCheck(num_wrong, error, output_error)


def unit_roundoff(dtype: torch.dtype, *, is_stochastic: bool = False) -> float:
    """Return the largest relative error of rounding, without subnormal numbers."""
    if not dtype.is_floating_point:
        return 0.0
    return torch.finfo(dtype).eps / (1 if is_stochastic else 2)


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().unsqueeze(-1).view(torch.uint8)


def _error(exact: Tensor, stored: Tensor, u: float) -> float:
    """Return the largest error as a multiple of the bound of one rounding; infinite for NaN."""
    if not stored.dtype.is_floating_point or stored.dtype.itemsize < 2:
        return math.inf if not torch.equal(_bytes(exact), _bytes(stored)) else 0.0
    difference = (stored.double() - exact.double()).abs()
    tiny = _SMALLEST.get(stored.dtype, 2.0**-1074)
    bound = exact.double().abs() * u + tiny * u / torch.finfo(stored.dtype).eps
    worst = (difference / bound).nan_to_num(nan=math.inf).max()
    return float(worst)


def _output_error(
    x: Tensor, old: Tensor, new: Tensor, delta: Tensor, parts: list[BlockPart], u: float
) -> float:
    """Return the largest error of outputs of some rows, as a multiple of its bound."""
    tiny = _SMALLEST.get(new.dtype, 2.0**-1074)
    magnitudes, weights = x.abs(), new.double()
    converted = old.to(new.dtype).double()
    for part in parts:
        converted[part.rows, part.columns] = old[part.rows, part.columns].double()
    wanted = x @ converted.t()  # [inputs, rows]
    # By Cauchy and Schwarz, |x| |w| of a row is at most the product of their norms.
    norms = torch.linalg.vector_norm(weights, dim=1) + torch.linalg.vector_norm(
        old, dim=1, dtype=torch.float64
    )
    bound = _FP64_SLACK * x.norm(dim=1, keepdim=True) * norms
    for part in parts:
        inputs = x[:, part.columns]
        wanted[:, part.rows] += inputs @ delta[part.block][:, part.outputs].double()
        in_block = magnitudes[:, part.columns]
        blocks = weights[part.rows, part.columns].abs()
        bound[:, part.rows] += (u + 2.0**-23) / (1 - u) * (in_block @ blocks.t())
        bound[:, part.rows] += tiny * in_block.sum(dim=1, keepdim=True)
    error = (x @ weights.t() - wanted).abs() / bound.clamp_min(torch.finfo(torch.float64).tiny)
    return float(error.nan_to_num(nan=math.inf).max())
