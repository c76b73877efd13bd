"""DiaBlo behind a fixed random permutation of the input channels, which a merge makes free.

Without it, a block joins neighbouring channels, such as those of one attention head; with it, a
block joins random ones. ``y = x W + (x P) D`` for a permutation ``P``; merged, the weight is
``W + P D``. Here the layer's weight becomes ``P^T W``, and its input ``x P``, so that the layer and
all its delta paths stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diablo_ds.adapter.layer import DiaBloLinear
from diablo_ds.errors import UserError


def permute_inputs(layers: Mapping[str, DiaBloLinear], seed: int) -> dict[str, Tensor]:
    """Permute the input channels of layers ahead of their blocks, in place.

    Layers of the same width get the same permutation.

    Args:
        layers: with deltas of zero, by name; their weights are permuted, in place.
        seed: decides the permutations.

    Returns:
        For each layer the channel that comes at each place, ``[in_features]``, int64.

    Raises:
        UserError: if a layer is not a plain linear layer.
    """
    generator = torch.Generator().manual_seed(seed)
    by_width: dict[int, Tensor] = {}
    for width in sorted({layer.in_features for layer in layers.values()}):
        by_width[width] = torch.randperm(width, generator=generator)
    orders = {}
    for name, layer in layers.items():
        weight: Any = layer._parameters["weight"]
        if type(layer._base_module[0]) is not nn.Linear:
            raise UserError(f"permuted needs layers of class Linear; got {name}")
        order = by_width[layer.in_features].to(weight.device)
        with torch.no_grad():
            weight.copy_(weight[:, order])  # [out_features, in_features]
        layer.register_forward_pre_hook(_permuting(order))
        orders[name] = order
    return orders


def _permuting(order: Tensor) -> Any:
    def permute(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].index_select(-1, order), *inputs[1:])

    return permute


@torch.no_grad()
def merged_weight(layer: DiaBloLinear, order: Tensor) -> Tensor:
    """Return the weight of a plain linear layer that computes the same, ``[out, in]``.

    Args:
        layer: as `permute_inputs` left it; its delta is merged.
        order: of its channels, from there.
    """
    layer.merge()
    weight: Any = layer._parameters["weight"]
    merged: Tensor = weight[:, torch.argsort(order)]
    return merged
