"""What the functions for Python check of a model and a folder, and what they find out of both."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diablo_ds.adapter.attach import diablo_layers
from diablo_ds.adapter.base import LinearModule, is_linear
from diablo_ds.adapter.layer import DiaBloLinear, delta_shapes
from diablo_ds.adapter.storage import AdapterConfig, check_covered
from diablo_ds.adapter.targets import resolve_num_blocks, select_targets
from diablo_ds.errors import UserError
from diablo_ds.files.layout import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_TENSOR_FILE,
    CARD_FILE,
    LOSS_PLOT,
    Kind,
    kind_of,
)
from diablo_ds.model.architecture import text_decoder_name

_REPLACEABLE = {ADAPTER_CONFIG_FILE, ADAPTER_TENSOR_FILE, CARD_FILE, LOSS_PLOT}


def selection(model: nn.Module, layers: str) -> dict[str, str]:
    """Return what `select_targets` has to know of a model."""
    model_config: Any = getattr(model, "config", None)
    if not hasattr(model_config, "get_text_config"):
        return {"layers": layers}
    return {
        "layers": layers,
        "model_type": model_config.get_text_config().model_type,
        "within": text_decoder_name(model),
    }


def as_text(num_blocks: Any) -> str:
    """Return a block count as text; only whole numbers and "auto:<share>" are some."""
    if isinstance(num_blocks, str):
        return num_blocks
    try:
        if isinstance(num_blocks, bool):
            raise TypeError
        return str(operator.index(num_blocks))
    except TypeError:
        raise UserError(
            f'num_blocks must be a number or "auto:<share>"; got num_blocks={num_blocks!r}'
        ) from None


def unwrapped(model: nn.Module) -> Any:
    """Return the model inside the wrappers of data parallelism and of the compiler."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(model, wrappers) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, wrappers) else model._orig_mod  # type: ignore[assignment]
    return model


def layers_with_deltas(model: nn.Module) -> dict[str, DiaBloLinear]:
    """Return a model's layers with deltas; raise UserError if it has none, or they are merged."""
    layers = diablo_layers(model)
    if not layers:
        raise UserError(
            f"a model must have deltas, by attach or load; got a {type(model).__name__} without"
        )
    if merged := [name for name, layer in layers.items() if layer.is_merged]:
        raise UserError(f"deltas must not be merged already; got {merged[0]}; unmerge it first")
    return layers


def check_without_deltas(model: nn.Module) -> None:
    """Raise UserError if a model has deltas."""
    if present := diablo_layers(model):
        raise UserError(
            f"a model must be without deltas to be given some; got {len(present)} layers with one, "
            f"the first {next(iter(present))}; detach or merge them first"
        )


def check_replaceable(folder: Path) -> None:
    """Raise UserError if a folder holds what saving an adapter there would remove."""
    kind = kind_of(folder)
    others = []
    if kind is Kind.ADAPTER:
        others = sorted(p.name for p in folder.iterdir() if p.name not in _REPLACEABLE)
    if kind not in (Kind.NOTHING, Kind.EMPTY, Kind.ADAPTER) or others:
        holding = f" with {', '.join(others[:3])}" if others else ""
        raise UserError(
            "folder must be new, empty or an adapter, which is replaced; got "
            f"{folder}, {kind.value}{holding}"
        )


def counts_by_target(
    model: nn.Module,
    chosen: Mapping[str, LinearModule],
    by_target: Mapping[str, str],
    options: Mapping[str, str],
) -> dict[str, int]:
    """Return the block count of each chosen layer, from counts by target.

    Args:
        model: has the layers.
        chosen: the layers that get a delta, by full module name.
        by_target: count or "auto:<share>" by target.
        options: what `selection` returned.

    Raises:
        UserError: if a layer has no count, or two.
    """
    counts: dict[str, int] = {}
    for name, value in by_target.items():
        matched = select_targets(model, (name,), **options)
        mine = {layer: linear for layer, linear in matched.items() if layer in chosen}
        for layer, count in resolve_num_blocks(mine, value).items():
            if counts.setdefault(layer, count) != count:
                raise UserError(
                    "num_blocks must have one count for each layer; got "
                    f"{counts[layer]} and {count} for {layer}"
                )
    if missing := [layer for layer in chosen if layer not in counts]:
        raise UserError(
            "num_blocks must have a count for each target layer; got none for "
            f"{missing[0]} and {len(missing) - 1} more"
        )
    return {layer: counts[layer] for layer in chosen}


def check_mergeable(model: nn.Module, layers: Mapping[str, DiaBloLinear]) -> None:
    """Raise UserError if a layer's weight cannot take its delta: it is no unsharded, own matrix."""
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    for name, layer in layers.items():
        weight: Any = getattr(layer, "weight", None)
        if not layer.base.is_dense or weight.shape != (layer.out_features, layer.in_features):
            raise UserError(
                "a weight must be an unsharded matrix of floats to be merged; got "
                f"{type(layer.base).__name__} at {name}"
            )
        if users[id(weight)] > 1:
            raise UserError(
                "a weight must be of one layer to be merged; got the weight of "
                f"{name}, which another module uses too; untie them first"
            )


def check_geometry(model: nn.Module, tensors: Mapping[str, Tensor], config: AdapterConfig) -> None:
    """Raise UserError unless an adapter's deltas are of a model's layers, and fit them.

    Args:
        model: without deltas.
        tensors: the deltas by parameter name.
        config: the adapter's.
    """
    linear = [name for name, module in model.named_modules() if is_linear(module)]
    if unknown := [name for name in config.num_blocks if name not in linear]:
        raise UserError(
            "an adapter's layers must be linear layers of the model; got "
            f"{unknown[0]} and {len(unknown) - 1} more that it lacks"
        )
    check_covered(config, config.num_blocks, linear)
    for name, shape in delta_shapes(model, config.num_blocks).items():
        if tensors[name].shape != shape:
            raise UserError(
                "an adapter's deltas must have the shapes of the model's layers; got "
                f"{list(tensors[name].shape)} and {list(shape)} for {name}"
            )
