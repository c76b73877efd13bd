"""Several adapters in one batch: each row of a batch is multiplied with the delta it chose.

A server keeps one base and many adapters, and answers requests for different adapters together.
The base's product is the same for all rows; only the delta's part depends on the row:

    y = F.linear(x, weight, bias)
    y = add_chosen_deltas(y, x, stack_deltas([math, code]), torch.tensor([0, -1, 1]))

Three formulations compute that part, equal in exact arithmetic:

- "grouped": for each adapter that was chosen, one batched product over blocks of all its rows. It
  reads each chosen delta once, multiplies nothing in vain and has to know the choice on the host.
- "gathered": the deltas of all rows are copied side by side, and one batched product runs over rows
  times blocks. It copies ``batch`` deltas, whatever their number of tokens.
- "stacked": all adapters are one delta whose blocks are ``num_adapters`` times as high, and each
  row's input is zero outside the part of its own adapter. It reads each delta once, but multiplies
  ``num_adapters`` times as much.

`choose_formulation` says which is taken where; `python -m benchmarks.serving` measures all three.
On all layers of a model: `diablo_ds.adapter.serving`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diablo_ds.adapter.block_products import add_block_product, delta_gradient
from diablo_ds.errors import UserError

FORMULATIONS = ("grouped", "gathered", "stacked")
_FEW_TOKENS = 16
"""Up to so many, a CPU's product of contiguous blocks, its copies included, takes 0.1 to 0.8 of the
time of a product of strided ones in most cases of fp32 and bf16; with more, it has no advantage."""
NO_ADAPTER = -1
"""The choice of a row that gets the base's output alone."""


def stack_deltas(deltas: Sequence[Tensor]) -> Tensor:
    """Copy one layer's deltas of several adapters into one tensor, laid out for their device.

    On a GPU the same block of all adapters lies together, so that "stacked" needs no further copy;
    on a CPU each adapter lies together. Every formulation takes either layout.

    Args:
        deltas: of each adapter, ``[num_blocks, in_block, out_block]``, all of one shape.

    Returns:
        ``[num_adapters, num_blocks, in_block, out_block]``, on a GPU not contiguous.
    """
    if deltas[0].device.type == "cpu":
        return torch.stack(tuple(deltas))
    return torch.stack(tuple(deltas), dim=1).transpose(0, 1)


def add_chosen_deltas(
    y: Tensor,
    x: Tensor,
    deltas: Tensor,
    choice: Tensor,
    *,
    inplace: bool = False,
    formulation: str = "auto",
) -> Tensor:
    """Return ``y + x D``, where each row of the batch has the delta that it chose.

    Differentiable by ``y``, ``x`` and ``deltas``. On a GPU the host never waits for the device, so
    the values of ``choice`` are not checked there: the caller must hold their range. On a CPU a
    wrong one is an error.

    Args:
        y: the base's output, ``[batch, ..., out_features]``. The product is computed in its dtype.
        x: the layer's input, ``[batch, ..., in_features]``.
        deltas: ``[num_adapters, num_blocks, in_block, out_block]``, e.g. by `stack_deltas`; any
            float dtype.
        choice: ``[batch]``, int64, on the device of ``x``: the adapter of each row, from 0, or
            `NO_ADAPTER`.
        inplace: write to ``y`` and return it. It must not be needed for a gradient.
        formulation: one of `FORMULATIONS`, or "auto" for `choose_formulation`'s.

    Returns:
        ``[batch, ..., out_features]`` in the dtype of ``y``. A row without an adapter has the
        values of ``y``.

    Raises:
        UserError: if the shapes do not belong together, ``choice`` is of another dtype or, on a
            CPU, out of range.
    """
    _check(y, x, deltas, choice)
    if formulation not in ("auto", *FORMULATIONS):
        raise UserError(
            f"formulation must be auto or one of {', '.join(FORMULATIONS)}; got {formulation!r}"
        )
    if not (y.numel() and x.numel() and deltas.numel()):
        return y if inplace else y.clone()
    if formulation == "auto":
        num_tokens = math.prod(x.shape[1:-1])
        formulation = choose_formulation(len(deltas), len(choice), num_tokens, x.device.type)
    out: Tensor = _ChosenProduct.apply(y, x, deltas, choice, inplace, formulation)  # type: ignore[no-untyped-call]
    return out


def choose_formulation(num_adapters: int, batch: int, num_tokens: int, device_type: str) -> str:
    """Return the formulation to take.

    On a CPU grouped was the fastest or close to it in nearly all cases measured. On a GPU it would
    make the host wait for the choice. Of the other two, stacked moves the fewer bytes
    where rows are short: ``num_adapters`` deltas instead of ``3 * batch``; its products grow with
    the tokens of the prompt. Not measured on a GPU.

    Args:
        num_adapters: number of stacked deltas.
        batch: number of rows.
        num_tokens: tokens per row: 1 while decoding, the prompt's length before.
        device_type: "cpu", "cuda" or another.
    """
    if device_type == "cpu" and not torch.compiler.is_compiling():
        return "grouped"
    return "stacked" if num_tokens == 1 and num_adapters <= batch else "gathered"


def _check(y: Tensor, x: Tensor, deltas: Tensor, choice: Tensor) -> None:
    if deltas.dim() != 4:
        raise UserError(
            "deltas must have the shape [num_adapters, num_blocks, in_block, out_block]; got "
            f"{list(deltas.shape)}; stack_deltas makes it"
        )
    num_adapters, num_blocks, in_block, out_block = deltas.shape
    wanted_x = (*y.shape[:-1], num_blocks * in_block)
    wanted_y = (*x.shape[:-1], num_blocks * out_block)
    if x.dim() < 2 or x.shape != wanted_x or y.shape != wanted_y:
        raise UserError(
            "x and y must be [batch, ..., num_blocks * in_block] and [batch, ..., num_blocks * "
            f"out_block]; got x of {list(x.shape)} and y of {list(y.shape)} with deltas of "
            f"{list(deltas.shape)}"
        )
    if choice.shape != x.shape[:1] or choice.dtype != torch.int64:
        raise UserError(
            "choice must be int64 with one element per row of the batch; got "
            f"{choice.dtype} of {list(choice.shape)} with batch={len(x)}"
        )
    if choice.device != x.device:
        raise UserError(
            f"choice must be on the device of x; got choice on {choice.device}, x on {x.device}"
        )
    if x.device.type == "cpu" and len(choice) and not torch.compiler.is_compiling():
        low, high = (int(value) for value in torch.aminmax(choice))
        if low < NO_ADAPTER or high >= num_adapters:
            raise UserError(
                f"choice must be from {NO_ADAPTER} (no adapter) to num_adapters - 1; got choices "
                f"from {low} to {high} with num_adapters={num_adapters}"
            )


class _ChosenProduct(torch.autograd.Function):
    """``y + x D_choice``. ``dX = dY D_choice^T`` is the same product with the blocks transposed."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        deltas: Tensor,
        choice: Tensor,
        inplace: bool,
        formulation: str,
    ) -> Tensor:
        ctx.save_for_backward(x, deltas, choice)
        ctx.formulation, ctx.dtype = formulation, y.dtype
        if inplace:
            ctx.mark_dirty(y)
        is_target = inplace and y.is_contiguous()
        target = y if is_target else y.clone(memory_format=torch.contiguous_format)
        _add_product(target, x.to(y.dtype), deltas.to(y.dtype), choice, formulation)
        return y.copy_(target) if inplace and not is_target else target

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, deltas, choice = ctx.saved_tensors
        needs_y, needs_x, needs_deltas, *_ = ctx.needs_input_grad
        grad_x = grad_deltas = None
        if needs_x:
            grad_x = torch.zeros(x.shape, dtype=ctx.dtype, device=x.device)
            transposed = deltas.to(ctx.dtype).transpose(2, 3)
            _add_product(grad_x, grad_y, transposed, choice, ctx.formulation)
            grad_x = grad_x.to(x.dtype)
        if needs_deltas:
            num_adapters, num_blocks, in_block, out_block = deltas.shape
            rows = _stacked_rows(x.to(ctx.dtype), choice, num_adapters, num_blocks)
            grad_rows = grad_y.reshape(-1, grad_y.shape[-1])
            grad = delta_gradient(rows, grad_rows, deltas[0], "fused")
            grad = grad.view(num_blocks, num_adapters, in_block, out_block)
            grad_deltas = grad.transpose(0, 1).to(deltas.dtype)
        return (grad_y if needs_y else None), grad_x, grad_deltas, None, None, None


def _add_product(y: Tensor, x: Tensor, deltas: Tensor, choice: Tensor, formulation: str) -> None:
    """Add ``x D_choice`` to a contiguous ``y``, in place; all of one dtype, none empty."""
    tokens = x.reshape(len(x), -1, x.shape[-1])  # [batch, tokens, in_features]
    y_tokens = y.view(len(y), -1, y.shape[-1])  # [batch, tokens, out_features]
    if formulation == "grouped":
        _add_grouped(y_tokens, tokens, deltas, choice)
    elif formulation == "gathered":
        _add_gathered(y_tokens, tokens, deltas, choice)
    else:
        num_adapters, num_blocks, in_block, out_block = deltas.shape
        rows = _stacked_rows(tokens, choice, num_adapters, num_blocks)
        high = deltas.transpose(0, 1).reshape(num_blocks, num_adapters * in_block, out_block)
        add_block_product(rows, high, y_tokens.view(-1, y.shape[-1]), "fused")


def _add_grouped(y: Tensor, x: Tensor, deltas: Tensor, choice: Tensor) -> None:
    chosen: dict[int, list[int]] = {}
    for row, adapter in enumerate(choice.tolist()):
        chosen.setdefault(adapter, []).append(row)
    chosen.pop(NO_ADAPTER, None)
    for adapter, rows in chosen.items():
        first, end = rows[0], rows[-1] + 1
        if len(rows) == end - first:  # neighbours need no copies
            _add_one(y[first:end], x[first:end], deltas[adapter])
            continue
        index = torch.tensor(rows, device=x.device)
        part = y.index_select(0, index)
        _add_one(part, x.index_select(0, index), deltas[adapter])
        y.index_copy_(0, index, part)


def _add_one(y: Tensor, x: Tensor, delta: Tensor) -> None:
    """Add ``x D`` to ``y``, both ``[rows, tokens, features]``, with one delta for all rows."""
    x, y = x.flatten(0, 1), y.view(-1, y.shape[-1])
    if len(x) > _FEW_TOKENS:
        add_block_product(x, delta, y, "fused")
        return
    x_blocks = x.unflatten(1, delta.shape[:2]).transpose(0, 1).contiguous()
    y.unflatten(1, delta.shape[::2]).transpose(0, 1).add_(torch.bmm(x_blocks, delta))


def _add_gathered(y: Tensor, x: Tensor, deltas: Tensor, choice: Tensor) -> None:
    batch, num_tokens, _ = x.shape
    _, num_blocks, in_block, out_block = deltas.shape
    own = deltas.index_select(0, choice.clamp(min=0))  # [batch, N, in_block, out_block]
    own.masked_fill_((choice < 0).view(-1, 1, 1, 1), 0)
    x_blocks = x.view(batch, num_tokens, num_blocks, in_block).transpose(1, 2)
    y_blocks = y.view(batch, num_tokens, num_blocks, out_block).transpose(1, 2)
    parts = torch.bmm(
        x_blocks.reshape(batch * num_blocks, num_tokens, in_block), own.flatten(0, 1)
    )  # [batch * N, tokens, out_block]
    y_blocks.add_(parts.view(batch, num_blocks, num_tokens, out_block))


def _stacked_rows(x: Tensor, choice: Tensor, num_adapters: int, num_blocks: int) -> Tensor:
    """Return each token's blocks once per adapter, zero but for the chosen one's.

    Returns:
        ``[batch * tokens, num_blocks * num_adapters * in_block]``.
    """
    is_chosen = choice.view(-1, 1) == torch.arange(num_adapters, device=choice.device)
    blocks = x.reshape(len(x), -1, num_blocks, 1, x.shape[-1] // num_blocks)
    rows = blocks * is_chosen.to(x.dtype).view(len(x), 1, 1, num_adapters, 1)
    return rows.flatten(2).flatten(0, 1)
