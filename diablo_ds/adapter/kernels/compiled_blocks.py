"""The products of `diablo_ds.adapter.products` as operators of PyTorch, for compiled layers.

To `torch.compile` each is one opaque operation: it neither looks into it nor breaks the graph
there, and fuses what is around it. While nothing is compiled they are not used: an operator's
dispatch takes longer than that of an autograd function.

In place of activations and views only the inputs and the parameter itself are saved for the
backward, as by `diablo_ds.adapter.autograd.DiaBloProduct`: under ZeRO-3 no gathered weight is kept
alive.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diablo_ds.adapter.kernels.triton_support import check_operand
from diablo_ds.adapter.paths import TRITON_PATHS
from diablo_ds.adapter.products import (
    delta_product,
    delta_product_gradients,
    product,
    product_gradients,
)

NAMESPACE = "diablo_ds"


@torch.library.custom_op(f"{NAMESPACE}::product", mutates_args=())
def product_op(
    x: Tensor,
    x_adapter: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    delta: Tensor,
    path: str,
) -> Tensor:
    """Return what `diablo_ds.adapter.products.product` does, contiguous.

    The summed path changes the weight and restores it bit for bit, so seen from outside no argument
    is changed.
    """
    if path in TRITON_PATHS:
        check_operand(path, x)
    return product(x, x_adapter, weight, bias, delta, path).contiguous()


@product_op.register_fake
def _(
    x: Tensor,
    x_adapter: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    delta: Tensor,
    path: str,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op(f"{NAMESPACE}::product_gradients", mutates_args=())
def product_gradients_op(
    grad_y: Tensor,
    x: Tensor,
    x_adapter: Tensor | None,
    weight: Tensor,
    delta: Tensor,
    path: str,
    needs: list[bool],
) -> list[Tensor]:
    """Return those of the three gradients of `product_gradients` that are needed.

    An operator cannot return None, so the others are missing from the list.
    """
    needs_x, needs_adapter, needs_delta = needs
    gradients = product_gradients(
        grad_y, x, x_adapter, weight, delta, path, (needs_x, needs_adapter, needs_delta)
    )
    return [gradient.contiguous() for gradient in gradients if gradient is not None]


@product_gradients_op.register_fake
def _(
    grad_y: Tensor,
    x: Tensor,
    x_adapter: Tensor | None,
    weight: Tensor,
    delta: Tensor,
    path: str,
    needs: list[bool],
) -> list[Tensor]:
    return [
        source.new_empty(source.shape)
        for source, is_needed in zip((x, x_adapter, delta), needs, strict=True)
        if source is not None and is_needed
    ]


def _save_for_product(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, x_adapter, weight, _, delta, path = inputs
    ctx.save_for_backward(x, x_adapter, weight, delta)
    ctx.path = path


def _product_backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, x_adapter, weight, delta = ctx.saved_tensors
    needs_x, needs_adapter, _, _, needs_delta, _ = ctx.needs_input_grad
    needs = [needs_x, needs_adapter and x_adapter is not None, needs_delta]
    found = iter(product_gradients_op(grad_y, x, x_adapter, weight, delta, ctx.path, needs))
    grad_x, grad_x_adapter, grad_delta = (next(found) if needed else None for needed in needs)
    return grad_x, grad_x_adapter, None, None, grad_delta, None


product_op.register_autograd(_product_backward, setup_context=_save_for_product)


@torch.library.custom_op(f"{NAMESPACE}::block_product", mutates_args=())
def block_product_op(x: Tensor, delta: Tensor, path: str) -> Tensor:
    """Return ``X D``, as `diablo_ds.adapter.products.delta_product` does."""
    if path in TRITON_PATHS:
        check_operand(path, x)
    return delta_product(x, delta, path)


@block_product_op.register_fake
def _(x: Tensor, delta: Tensor, path: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], delta.shape[0] * delta.shape[2])


@torch.library.custom_op(f"{NAMESPACE}::block_product_gradients", mutates_args=())
def block_product_gradients_op(
    grad_y: Tensor, x: Tensor, delta: Tensor, path: str, needs: list[bool]
) -> list[Tensor]:
    """Return those of the gradients of ``x`` and ``delta`` that are needed."""
    needs_x, needs_delta = needs
    found = delta_product_gradients(grad_y, x, delta, path, (needs_x, needs_delta))
    return [gradient.contiguous() for gradient in found if gradient is not None]


@block_product_gradients_op.register_fake
def _(grad_y: Tensor, x: Tensor, delta: Tensor, path: str, needs: list[bool]) -> list[Tensor]:
    sources = zip((x, delta), needs, strict=True)
    return [source.new_empty(source.shape) for source, is_needed in sources if is_needed]


def _save_for_block_product(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, delta, path = inputs
    ctx.save_for_backward(x, delta)
    ctx.path = path


def _block_product_backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, delta = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:2])
    found = iter(block_product_gradients_op(grad_y, x, delta, ctx.path, needs))
    grad_x, grad_delta = (next(found) if needed else None for needed in needs)
    return grad_x, grad_delta, None


block_product_op.register_autograd(_block_product_backward, setup_context=_save_for_block_product)


@torch.library.custom_op(f"{NAMESPACE}::frozen_linear", mutates_args=())
def frozen_linear_op(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``X W + b``, ``[..., out_features]``, of a frozen ``W`` ``[out, in]`` and ``b``."""
    y: Tensor = torch.ops.aten.linear(x, weight, bias)
    return y.contiguous()


@frozen_linear_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op(f"{NAMESPACE}::frozen_linear_gradient", mutates_args=())
def frozen_linear_gradient_op(grad_y: Tensor, weight: Tensor) -> Tensor:
    """Return ``dX = dY W^T``, ``[..., in_features]``."""
    rows = grad_y.reshape(-1, grad_y.shape[-1])
    return torch.mm(rows, weight).view(*grad_y.shape[:-1], weight.shape[1])


@frozen_linear_gradient_op.register_fake
def _(grad_y: Tensor, weight: Tensor) -> Tensor:
    return grad_y.new_empty(*grad_y.shape[:-1], weight.shape[1])


def _save_for_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _linear_backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    (weight,) = ctx.saved_tensors
    needs_x, *_ = ctx.needs_input_grad
    return frozen_linear_gradient_op(grad_y, weight) if needs_x else None, None, None


frozen_linear_op.register_autograd(_linear_backward, setup_context=_save_for_linear)
