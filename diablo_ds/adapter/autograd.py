"""The products of a layer with a delta, differentiable.

`diablo_linear` computes base and delta at once, for a base with a dense weight. `block_linear`
computes the delta's part alone, for any other base; `add_block_linear` adds it to an output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diablo_ds.adapter.block_products import add_block_product
from diablo_ds.adapter.kernels.triton_support import check_operand
from diablo_ds.adapter.paths import SUMMED_PATHS, TRITON_PATHS
from diablo_ds.adapter.products import (
    delta_product,
    delta_product_gradients,
    product,
    product_gradients,
)
from diablo_ds.errors import UserError


class DiaBloProduct(torch.autograd.Function):
    """``Y = X W + b + X_a D`` with a frozen ``W`` and ``b`` and a trainable ``D``.

    Only the two inputs and the parameter objects are saved. The parameters are saved as they are,
    never as a view or a cast: ZeRO-3 empties ``weight.data`` after the forward and refills it
    before the backward, so no gathered weight is kept alive in between.

    Three formulations, equal in exact arithmetic. Fused, the block products are accumulated in
    place into the output's block view. Prefilled, they are written first, and the matrix product is
    accumulated onto them. Summed, the delta is added to the weight's diagonal blocks while one
    matrix product runs. In half precision the first rounds the output twice, the second the delta's
    part and the output, the third ``W + D``, as full fine-tuning does;
    `diablo_ds.adapter.paths.resolve_delta_path` has figures. The paths "triton",
    "triton_prefilled" and "triton_summed" are the same three by the kernels of
    `diablo_ds.adapter.kernels.triton_blocks`.

    Gradients (X as ``[tokens, features]``): ``dX = dY W^T``, ``dX_a = dY D^T`` block by block and
    ``dD_i = X_a,i^T dY_i``, which is the gradient full fine-tuning gives the same block.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        x_adapter: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        delta: Tensor,
        path: str,
    ) -> Tensor:
        """Compute the product; ``x_adapter`` is None where the adapter sees the same input."""
        ctx.save_for_backward(x, x_adapter, weight, delta)
        ctx.path = path
        return product(x, x_adapter, weight, bias, delta, path)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``x``, ``x_adapter``, ``weight``, ``bias`` and ``delta``."""
        needs_x, needs_adapter, _, _, needs_delta, _ = ctx.needs_input_grad
        x, x_adapter, weight, delta = ctx.saved_tensors
        needs = needs_x, needs_adapter, needs_delta
        grad_x, grad_x_adapter, grad_delta = product_gradients(
            grad_y, x, x_adapter, weight, delta, ctx.path, needs
        )
        return grad_x, grad_x_adapter, None, None, grad_delta, None


def diablo_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    delta: Tensor,
    x_adapter: Tensor | None = None,
    *,
    path: str = "fused",
) -> Tensor:
    """Apply a frozen linear layer plus its block-diagonal delta.

    Args:
        x: ``[..., in_features]``.
        weight: ``[out_features, in_features]``, frozen; gets no gradient.
        bias: ``[out_features]`` or None, frozen; gets no gradient.
        delta: ``[num_blocks, in_block, out_block]``, in the dtype of ``weight``.
        x_adapter: ``[..., in_features]``, what the delta sees where it is not ``x`` itself, e.g.
            after a dropout.
        path: a delta path, see `DiaBloProduct`. Summed, the weight must be contiguous.

    Returns:
        ``[..., out_features]``.

    Raises:
        UserError: if a summed path goes with an ``x_adapter``, which needs a product of its own,
            or a path of Triton's with a device or dtype that it does not take.
    """
    if path in SUMMED_PATHS and x_adapter is not None:
        raise UserError(
            f"a summed product must have one input; got path={path!r} and an x_adapter; use fused"
        )
    x, x_adapter, weight, bias, delta = _autocast(x, x_adapter, weight, bias, delta)
    if torch.compiler.is_compiling():  # the same, opaque to the compiler: compiled_blocks.py
        return torch.ops.diablo_ds.product(x, x_adapter, weight, bias, delta, path)  # type: ignore[no-any-return]
    if path in TRITON_PATHS:
        check_operand(path, x)
    y: Tensor = DiaBloProduct.apply(x, x_adapter, weight, bias, delta, path)  # type: ignore[no-untyped-call]
    return y


class BlockProduct(torch.autograd.Function):
    """``Y = X D`` alone: the delta's part, for a base that computes its own apart."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, path: str) -> Tensor:
        """Compute the product by one of `diablo_ds.adapter.paths.SEPARATE_PATHS`."""
        ctx.save_for_backward(x, delta)
        ctx.path = path
        return delta_product(x, delta, path)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``x`` and ``delta``."""
        x, delta = ctx.saved_tensors
        needs_x, needs_delta, _ = ctx.needs_input_grad
        return *delta_product_gradients(grad_y, x, delta, ctx.path, (needs_x, needs_delta)), None


def block_linear(x: Tensor, delta: Tensor, *, path: str = "fused") -> Tensor:
    """Return ``X D``, ``[..., out_features]``, differentiable by both.

    Args:
        x: ``[..., in_features]``.
        delta: ``[num_blocks, in_block, out_block]``, in the dtype of ``x``.
        path: one of `diablo_ds.adapter.paths.SEPARATE_PATHS`.

    Raises:
        UserError: if Triton's path does not take the device or dtype.
    """
    x, delta = _autocast(x, delta)
    if torch.compiler.is_compiling():
        return torch.ops.diablo_ds.block_product(x, delta, path)  # type: ignore[no-any-return]
    if path in TRITON_PATHS:
        check_operand(path, x)
    y: Tensor = BlockProduct.apply(x, delta, path)  # type: ignore[no-untyped-call]
    return y


class BlockSum(torch.autograd.Function):
    """``Y = Y_0 + X D``, accumulated as `DiaBloProduct` does it: both give the same bits."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, delta: Tensor) -> Tensor:
        """Compute the sum; ``y`` stays as it is."""
        ctx.save_for_backward(x, delta)
        total = y.clone(memory_format=torch.contiguous_format)
        rows, total_rows = x.reshape(-1, x.shape[-1]), total.view(-1, y.shape[-1])
        add_block_product(rows, delta, total_rows, "fused")
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``y``, ``x`` and ``delta``."""
        x, delta = ctx.saved_tensors
        needs_y, *needs = ctx.needs_input_grad
        gradients = delta_product_gradients(grad_y, x, delta, "fused", (needs[0], needs[1]))
        return grad_y if needs_y else None, *gradients


def add_block_linear(y: Tensor, x: Tensor, delta: Tensor) -> Tensor:
    """Return ``Y + X D``, ``[..., out_features]`` in the dtype of ``y``, differentiable by all.

    Args:
        y: ``[..., out_features]``, the output of a base that is computed apart.
        x: ``[..., in_features]``, cast to the dtype of ``y`` like the delta.
        delta: ``[num_blocks, in_block, out_block]``.
    """
    x, delta = x.to(y.dtype), delta.to(y.dtype)
    if torch.compiler.is_compiling():
        total: Tensor = y + torch.ops.diablo_ds.block_product(x, delta, "fused")
    else:
        total = BlockSum.apply(y, x, delta)  # type: ignore[no-untyped-call]
    return total


def _autocast(x: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """Return the operands, each a tensor or None, in the dtype of autocast where it is on."""
    device_type = x.device.type
    # PyTorch 2.11 cannot compile the question whether a device has autocast.
    has_autocast = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type)
    if not has_autocast or not torch.is_autocast_enabled(device_type):
        return x, *others
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(None if t is None else t.to(dtype) for t in (x, *others))
