"""The products of `blocks.py` as operators of PyTorch, for layers that are being compiled.

To `torch.compile` each is one opaque operation: it neither looks into it nor breaks the graph
there, and fuses what is around it. While nothing is compiled they are not used: an operator's
dispatch takes longer than that of an autograd function.

In place of activations and views only the inputs and the parameter itself are saved for the
backward, as by `diablo_ds.adapter.blocks.DiaBloProduct`: under ZeRO-3 no gathered weight is kept
alive.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diablo_ds.adapter.blocks import TRITON_PATHS, product, product_gradients
from diablo_ds.adapter.kernels import triton_blocks

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
    """Return what `diablo_ds.adapter.blocks.product` does, contiguous.

    The merged path changes the weight for a while and restores it bit for bit, so seen from outside
    no argument is changed.
    """
    if path in TRITON_PATHS:
        triton_blocks.check_operand(path, x)
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

    An operator returns no None: the others are left out.
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
    of_each = x, x_adapter, delta
    return [
        of.new_empty(of.shape)
        for of, is_needed in zip(of_each, needs, strict=True)
        if of is not None and is_needed
    ]


def _save_for_product(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, x_adapter, weight, _, delta, path = inputs
    ctx.save_for_backward(x, x_adapter, weight, delta)
    ctx.path = path


def _product_backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, x_adapter, weight, delta = ctx.saved_tensors
    needs_x, needs_adapter, _, _, needs_delta, _ = ctx.needs_input_grad
    needs = [needs_x, needs_adapter and x_adapter is not None, needs_delta]
    found = product_gradients_op(grad_y, x, x_adapter, weight, delta, ctx.path, needs)
    left = iter(found)
    grad_x, grad_x_adapter, grad_delta = (next(left) if needed else None for needed in needs)
    return grad_x, grad_x_adapter, None, None, grad_delta, None


product_op.register_autograd(_product_backward, setup_context=_save_for_product)


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
