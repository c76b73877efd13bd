"""A target layer alone, at real shapes, against the same in fp64 on the device."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.models import device
from diablo_ds.adapter.autograd import diablo_linear
from diablo_ds.adapter.blocks import diagonal_blocks

_WIDTHS = {
    "full": ((4096, 14336), (14336, 4096), (4096, 1024)),
    "tiny": ((64, 192), (192, 64), (64, 32)),
}
_COUNTS = {"full": (64, 128), "tiny": (4, 8)}
_TOKENS = {"full": 1024, "tiny": 16}
BOUND = 2.0**-8
"""Of the relative error of a result in bf16: rounding it once makes 0.0017, twice, as where the
blocks' product is added to an output that was rounded already, at most 0.0024."""
_DELTA_SHARE = 0.1


def check_layer(scale: str, path: str, *, few: bool = False) -> dict[str, Any]:
    """Return relative errors of output and gradients by shape, and whether a second run is equal.

    Args:
        scale: "full" or "tiny".
        path: of the delta's product.
        few: only two shapes, where each has to be compiled.
    """
    figures: dict[str, Any] = {"bound": BOUND}
    worst, is_equal = 0.0, True
    shapes = list(itertools.product(_WIDTHS[scale], _COUNTS[scale]))
    for widths, num_blocks in shapes[:: 3 if few else 1]:
        inputs = _inputs(*widths, num_blocks, _TOKENS[scale])
        exact = _exact(*inputs)
        first, second = (_run(path, *inputs) for _ in range(2))
        for name, value, other, wanted in zip(("y", "dX", "dD"), first, second, exact, strict=True):
            error = float((value.double() - wanted).norm() / wanted.norm())
            figures[f"{widths[0]}->{widths[1]} N={num_blocks} {name}"] = error
            worst = max(worst, error)
            is_equal = is_equal and torch.equal(value, other)
    figures |= {"worst": worst, "second_run_is_equal": is_equal}
    return figures | {"passed": worst <= BOUND and is_equal}


def _inputs(
    in_features: int, out_features: int, num_blocks: int, tokens: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x, weight, delta and the gradient of y in bf16 on the device."""
    torch.manual_seed(0)
    where = device()
    std = in_features**-0.5
    block = (num_blocks, in_features // num_blocks, out_features // num_blocks)
    x = torch.randn(tokens, in_features, device=where)
    weight = torch.randn(out_features, in_features, device=where) * std
    delta = torch.randn(block, device=where) * (_DELTA_SHARE * std)
    grad = torch.randn(tokens, out_features, device=where)
    return x.bfloat16(), weight.bfloat16(), delta.bfloat16(), grad.bfloat16()


def _exact(x: Tensor, weight: Tensor, delta: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Return y and the gradients of x and delta in fp64, by dense products."""
    x, grad = x.double(), grad.double()
    dense = torch.block_diag(*delta.double().transpose(1, 2))
    whole = weight.double() + dense  # [out_features, in_features]
    dense_gradient = grad.T @ x
    return x @ whole.T, grad @ whole, diagonal_blocks(dense_gradient, delta.shape[0])


def _run(path: str, x: Tensor, weight: Tensor, delta: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    x, delta = x.clone().requires_grad_(True), delta.clone().requires_grad_(True)
    y = diablo_linear(x, weight, None, delta, path=path)
    return (y.detach(), *torch.autograd.grad(y, (x, delta), grad))
