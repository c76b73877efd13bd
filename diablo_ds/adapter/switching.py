"""An adapter put on a model for a while, without changing the model's layers.

Its deltas are added to the weights, which costs no time in a forward; the blocks that change are
kept and put back bit for bit. Where a layer's weight cannot take its delta, hooks add the delta's
product to the layer's output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diablo_ds.adapter.base import base_of
from diablo_ds.adapter.block_products import add_block_product
from diablo_ds.adapter.blocks import diagonal_blocks

_SUFFIX = ".delta"


def layer_of(key: str) -> str:
    """Return the full name of the layer that a tensor of an adapter belongs to."""
    return key.removesuffix(_SUFFIX)


def can_merge(model: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether each target layer has a weight of floats that no other layer uses."""
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    layers: list[Any] = [model.get_submodule(layer_of(key)) for key in tensors]
    return all(base_of(layer).is_dense and users[id(layer.weight)] == 1 for layer in layers)


@contextlib.contextmanager
def merged_deltas(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Add an adapter's deltas to the weights inside the block, and put the weights back after it.

    Args:
        model: without deltas; `can_merge` holds, and no weight is partitioned.
        tensors: the deltas by "<layer>.delta", ``[num_blocks, in_block, out_block]``.
    """

    def changes() -> Iterator[tuple[Tensor, Tensor]]:
        for key, delta in tensors.items():
            layer: Any = model.get_submodule(layer_of(key))
            yield diagonal_blocks(layer.weight.detach(), len(delta)), delta

    with added(changes(), keep=torch.clone):
        yield


@contextlib.contextmanager
def added(
    changes: Iterable[tuple[Tensor, Tensor]], *, keep: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Add to values in place inside the block, and put them back bit for bit after it.

    Args:
        changes: views of weights, and what is added to each, of its shape; taken one by one.
        keep: returns a copy of a view's values.
    """
    before: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for view, change in changes:
                before.append((view, keep(view)))
                view.add_(change.to(view.device))  # a sum in the wider dtype, rounded once
        yield
    finally:
        with torch.no_grad():
            for view, values in before:
                view.copy_(values)


@contextlib.contextmanager
def added_deltas(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Add the products with an adapter's deltas to the outputs of its layers inside the block.

    For forwards without gradients. Weights may be partitioned by ZeRO-3.

    Args:
        model: without deltas.
        tensors: the deltas by "<layer>.delta", ``[num_blocks, in_block, out_block]``; they are
            copied in the dtype of each layer and to its device.
    """
    with contextlib.ExitStack() as hooks:
        for key, delta in tensors.items():
            layer: Any = model.get_submodule(layer_of(key))
            own = delta.to(next(layer.parameters()).device, base_of(layer).dtype)
            hooks.enter_context(layer.register_forward_hook(_adding(own)))
        yield


def _adding(delta: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def add(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        rows = args[0].reshape(-1, args[0].shape[-1])  # [tokens, in_features]
        y = y.contiguous()
        add_block_product(rows, delta, y.view(-1, y.shape[-1]), "fused")
        return y

    return add
