"""Block-diagonal maths: block counts and shapes, products with a delta, exact gradients.

A weight of a linear layer, written as ``W`` of ``[in_features, out_features]``, is cut into
``num_blocks x num_blocks`` blocks; DiaBlo (arXiv 2506.03230) trains only those on the diagonal.
They are kept as one tensor, the delta ``[num_blocks, in_block, out_block]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diablo_ds.adapter.kernels import triton_blocks
from diablo_ds.errors import UserError

TRITON_PATHS = tuple(triton_blocks.WITHOUT_TRITON)
MERGED_PATHS = ("merged", "triton_merged")
PREFILLED_PATHS = ("prefilled", "triton_prefilled")
PATHS = ("fused", "merged", "prefilled", *TRITON_PATHS)


def legal_num_blocks(in_features: int, out_features: int) -> list[int]:
    """Return every block count that divides both widths, in ascending order."""
    common = math.gcd(in_features, out_features)
    small = [n for n in range(1, math.isqrt(common) + 1) if common % n == 0]
    return sorted({*small, *(common // n for n in small)})


def nearest_num_blocks(in_features: int, out_features: int, wanted: float) -> list[int]:
    """Return the legal block counts next to ``wanted``: the one below and the one above it.

    A legal ``wanted`` is returned alone. The list is never empty, since 1 is always legal.
    """
    legal = legal_num_blocks(in_features, out_features)
    below = [n for n in legal if n <= wanted]
    above = [n for n in legal if n >= wanted]
    return sorted({*below[-1:], *above[:1]})


def num_blocks_for_share(in_features: int, out_features: int, share: float) -> int:
    """Return the legal block count whose trainable share, ``1 / num_blocks``, is nearest.

    Nearest is meant on a logarithmic scale; of two equally near counts the larger one (the
    smaller delta) is taken.
    """
    candidates = nearest_num_blocks(in_features, out_features, 1 / share)
    return min(candidates, key=lambda n: (abs(math.log(n * share)), -n))


def check_num_blocks(num_blocks: int, in_features: int, out_features: int) -> None:
    """Raise UserError unless ``num_blocks`` is positive and divides both widths."""
    if num_blocks < 1 or in_features % num_blocks or out_features % num_blocks:
        near = nearest_num_blocks(in_features, out_features, num_blocks)
        raise UserError(
            "num_blocks must be positive and divide in_features and out_features; got "
            f"num_blocks={num_blocks}, in_features={in_features}, out_features={out_features}; "
            f"nearest that work: {', '.join(map(str, near))}"
        )


def delta_shape(num_blocks: int, in_features: int, out_features: int) -> tuple[int, int, int]:
    """Return the shape of a delta, ``(num_blocks, in_block, out_block)``.

    Raises:
        UserError: if ``num_blocks`` does not divide both widths.
    """
    check_num_blocks(num_blocks, in_features, out_features)
    return num_blocks, in_features // num_blocks, out_features // num_blocks


def dense_delta(delta: Tensor) -> Tensor:
    """Return the delta as a dense matrix laid out like a PyTorch weight.

    Args:
        delta: ``[num_blocks, in_block, out_block]``.

    Returns:
        ``[out_features, in_features]``, zero outside the diagonal blocks.
    """
    dense: Tensor = torch.block_diag(*delta.transpose(1, 2))
    return dense


def diagonal_blocks(weight: Tensor, num_blocks: int) -> Tensor:
    """Return a view of the diagonal blocks of a PyTorch weight, laid out like a delta.

    Args:
        weight: ``[out_features, in_features]``, contiguous.
        num_blocks: number of diagonal blocks; divides both widths.

    Returns:
        ``[num_blocks, in_block, out_block]``, sharing memory with ``weight``.
    """
    out_features, in_features = weight.shape
    _, in_block, out_block = delta_shape(num_blocks, in_features, out_features)
    stride = (out_block * in_features + in_block, 1, in_features)
    return weight.as_strided((num_blocks, in_block, out_block), stride, weight.storage_offset())


@contextmanager
def merged_weight(weight: Tensor, delta: Tensor, path: str = "merged") -> Iterator[Tensor]:
    """Add a delta to the diagonal blocks of a weight for a while, and restore them exactly.

    Only the blocks are copied and put back, ``1 / num_blocks`` of the weight, so nothing of the
    weight's size is allocated, and its bits are the same afterwards.

    Args:
        weight: ``[out_features, in_features]``, contiguous.
        delta: ``[num_blocks, in_block, out_block]``, of the same dtype.
        path: one of `MERGED_PATHS`.

    Yields:
        The weight's data, which autograd does not see.
    """
    data = weight.data
    blocks = diagonal_blocks(data, delta.shape[0]).transpose(1, 2)  # [N, out_block, in_block]
    if path in TRITON_PATHS:
        saved = triton_blocks.add_to_diagonal(data, delta.data)
    else:
        saved = blocks.clone()
        blocks.add_(delta.data.transpose(1, 2))
    try:
        yield data
    finally:
        blocks.copy_(saved)


def _delta_gradient(x_rows: Tensor, grad_rows: Tensor, delta: Tensor, path: str) -> Tensor:
    """Return ``X_i^T dY_i`` of each block, shaped like ``delta``, from ``[tokens, features]``."""
    if path in TRITON_PATHS:
        return triton_blocks.delta_gradient(x_rows, grad_rows, delta.shape[0])
    x_blocks = _block_view(x_rows, delta.shape[0])  # [N, tokens, in_block]
    grad_blocks = _block_view(grad_rows, delta.shape[0])  # [N, tokens, out_block]
    if x_rows.device.type == "cpu" and x_rows.dtype != torch.float32:
        # oneDNN's half-precision products of strided blocks take up to twice as long as the
        # copies and the product of contiguous ones (benchmarks/layer.py).
        x_blocks, grad_blocks = x_blocks.contiguous(), grad_blocks.contiguous()
    return torch.bmm(x_blocks.transpose(1, 2), grad_blocks)


def _block_view(x: Tensor, num_blocks: int) -> Tensor:
    """View ``[tokens, num_blocks * block]`` as ``[num_blocks, tokens, block]``, without a copy."""
    num_tokens, width = x.shape
    return x.view(num_tokens, num_blocks, width // num_blocks).transpose(0, 1)


def _write_block_product(
    rows: Tensor, delta: Tensor, y: Tensor, path: str, bias: Tensor | None = None
) -> Tensor:
    """Write ``b + rows D`` to ``y``, ``[tokens, features]``, through its block view."""
    if path in TRITON_PATHS:
        return triton_blocks.block_product(rows, delta, y, bias)
    num_blocks = delta.shape[0]
    row_blocks, y_blocks = _block_view(rows, num_blocks), _block_view(y, num_blocks)
    if bias is None:
        torch.bmm(row_blocks, delta, out=y_blocks)
    else:
        torch.baddbmm(bias.view(num_blocks, 1, -1), row_blocks, delta, out=y_blocks)
    return y


def _add_block_product(rows: Tensor, delta: Tensor, y: Tensor, path: str) -> Tensor:
    """Add ``rows D`` to ``y``, ``[tokens, features]``, through its block view."""
    if path in TRITON_PATHS:
        return triton_blocks.block_product(rows, delta, y, accumulate=True)
    num_blocks = delta.shape[0]
    _block_view(y, num_blocks).baddbmm_(_block_view(rows, num_blocks), delta)
    return y


def product(
    x: Tensor,
    x_adapter: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    delta: Tensor,
    path: str,
) -> Tensor:
    """Return ``Y = X W + b + X_a D``, ``[..., out_features]``; see `DiaBloProduct`.

    Args:
        x: ``[..., in_features]``.
        x_adapter: the same shape, or None where the adapter sees ``x``.
        weight: ``[out_features, in_features]``.
        bias: ``[out_features]`` or None.
        delta: ``[num_blocks, in_block, out_block]``.
        path: one of `PATHS`.
    """
    # The original linear: DeepSpeed replaces F.linear, which we must not nest in here.
    if path in MERGED_PATHS:
        with merged_weight(weight, delta, path) as whole:
            merged: Tensor = torch.ops.aten.linear(x, whole, bias)
        return merged
    x_rows = x.reshape(-1, x.shape[-1])
    adapter_rows = x_rows if x_adapter is None else x_adapter.reshape(-1, x.shape[-1])
    if path in PREFILLED_PATHS:
        y = x.new_empty((x_rows.shape[0], weight.shape[0]))
        _write_block_product(adapter_rows, delta, y, path, bias)
        y.addmm_(x_rows, weight.t())
    else:
        y = torch.ops.aten.linear(x_rows, weight, bias)
        _add_block_product(adapter_rows, delta, y, path)
    return y.view(*x.shape[:-1], y.shape[1])


def product_gradients(
    grad_y: Tensor,
    x: Tensor,
    x_adapter: Tensor | None,
    weight: Tensor,
    delta: Tensor,
    path: str,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of ``x``, ``x_adapter`` and ``delta`` that are needed, else None.

    Args:
        grad_y: ``[..., out_features]``.
        x: as in `product`, like the next four.
        x_adapter: see there.
        weight: see there.
        delta: see there.
        path: see there.
        needs: which of the three gradients are needed.
    """
    grad_rows = grad_y.reshape(-1, grad_y.shape[-1])
    rows = (x if x_adapter is None else x_adapter).reshape(-1, x.shape[-1])
    if path in MERGED_PATHS:
        grad_x = None
        if needs[0]:
            with merged_weight(weight, delta, path) as whole:
                grad_x = torch.mm(grad_rows, whole).view(x.shape)
        return grad_x, None, _delta_gradient(rows, grad_rows, delta, path) if needs[2] else None

    prefills = path in PREFILLED_PATHS and x_adapter is None
    adds = x_adapter is None and not prefills
    grad_x = torch.mm(grad_rows, weight) if needs[0] and not prefills else None
    # Where the delta's part goes: the gradient of x, or of the input that is the adapter's own.
    part = None  # [tokens, in_features]
    if needs[0] if x_adapter is None else needs[1]:
        part = grad_x if adds else rows.new_empty(rows.shape)
    grad_delta = _block_gradients(rows, grad_rows, delta, part, path, needs[2], accumulate=adds)
    if x_adapter is not None:
        return _shaped_like(x, grad_x), _shaped_like(x_adapter, part), grad_delta
    if prefills and part is not None:
        part.addmm_(grad_rows, weight)
    return _shaped_like(x, part), None, grad_delta


def _shaped_like(x: Tensor, rows: Tensor | None) -> Tensor | None:
    return None if rows is None else rows.view(x.shape)


def _block_gradients(
    rows: Tensor,
    grad_rows: Tensor,
    delta: Tensor,
    target: Tensor | None,
    path: str,
    needs_delta: bool,
    *,
    accumulate: bool,
) -> Tensor | None:
    """Write ``dY D^T`` to the target, or add it; return the delta's gradient where it is needed."""
    if target is not None:
        if needs_delta and path in TRITON_PATHS:
            return triton_blocks.block_gradients(
                rows, grad_rows, delta, target, accumulate=accumulate
            )
        transposed = delta.transpose(1, 2)  # [N, out_block, in_block]
        if accumulate:
            _add_block_product(grad_rows, transposed, target, path)
        else:
            _write_block_product(grad_rows, transposed, target, path)
    return _delta_gradient(rows, grad_rows, delta, path) if needs_delta else None


class DiaBloProduct(torch.autograd.Function):
    """``Y = X W + b + X_a D`` with a frozen ``W`` and ``b`` and a trainable ``D``.

    Only the two inputs and the parameter objects are saved. The parameters are saved as they are,
    never as a view or a cast: ZeRO-3 empties ``weight.data`` after the forward and refills it
    before the backward, so no gathered weight is kept alive in between.

    Three formulations, equal in exact arithmetic. Fused, the block products are accumulated in
    place into the output's block view. Prefilled, they are written first, and the matrix product is
    accumulated onto them. Merged, the delta is added to the weight's diagonal blocks while one
    matrix product runs. In half precision the first rounds the output twice, the second the delta's
    part and the output, the third ``W + D``, as full fine-tuning does;
    `diablo_ds.adapter.layer.resolve_delta_path` has figures. The paths "triton",
    "triton_prefilled" and "triton_merged" are the same three by the kernels of
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
        path: one of `PATHS`, see `DiaBloProduct`. Merged, the weight must be contiguous.

    Returns:
        ``[..., out_features]``.

    Raises:
        UserError: if a merged path goes with an ``x_adapter``, which needs a product of its own,
            or a path of Triton's with a device or dtype that it does not take.
    """
    if path in MERGED_PATHS and x_adapter is not None:
        raise UserError(
            f"a merged product must have one input; got path={path!r} and an x_adapter; use fused"
        )
    device_type, is_compiling = x.device.type, torch.compiler.is_compiling()
    # PyTorch 2.11 cannot compile the question whether a device has autocast.
    has_autocast = is_compiling or torch.amp.is_autocast_available(device_type)
    if has_autocast and torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        x, weight, delta = x.to(dtype), weight.to(dtype), delta.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        x_adapter = None if x_adapter is None else x_adapter.to(dtype)
    if is_compiling:  # the same, opaque to the compiler: compiled_blocks.py
        return torch.ops.diablo_ds.product(x, x_adapter, weight, bias, delta, path)  # type: ignore[no-any-return]
    if path in TRITON_PATHS:
        triton_blocks.check_operand(path, x)
    y: Tensor = DiaBloProduct.apply(x, x_adapter, weight, bias, delta, path)  # type: ignore[no-untyped-call]
    return y
