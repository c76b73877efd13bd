"""Numbers of blocks by layer: what a config says, and whether a model's layers can have them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils.other import get_pattern_key
from torch import nn

from diablo_ds.adapter.base import base_of
from diablo_ds.adapter.layer_names import compact_num_blocks, targets_of
from diablo_ds.adapter.targets import resolve_num_blocks
from diablo_ds.errors import UserError
from diablo_ds.peft.config import DiaBloConfig


def num_blocks_of(config: DiaBloConfig, name: str) -> int:
    """Return the number of blocks that a config gives a layer, by its full name."""
    pattern = config.num_blocks_pattern
    return int(pattern.get(get_pattern_key(pattern, name), config.num_blocks))


def set_num_blocks(config: DiaBloConfig, num_blocks: Mapping[str, int]) -> None:
    """Make a config say these numbers of blocks, by the full names of the layers."""
    config.num_blocks, config.num_blocks_pattern = compact_num_blocks(num_blocks)


def set_targets(config: DiaBloConfig, layers: Collection[str], model: nn.Module) -> None:
    """Make a config's targets, among a model's modules, exactly these layers."""
    outer = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    inside = tuple(f"{name}." for name in outer)
    modules = [name for name, _ in model.named_modules() if not name.startswith(inside)]
    targets = targets_of(layers, modules).target_modules
    config.target_modules = targets if isinstance(targets, str) else set(targets)
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None


def check_targets(
    config: DiaBloConfig, model: nn.Module, is_target: Callable[[DiaBloConfig, str], Any]
) -> None:
    """Check that each target layer can have its number of blocks, and resolve "auto:<share>".

    Args:
        config: its `target_modules` are resolved if they are "all-linear".
        model: unchanged.
        is_target: PEFT's rule whether a config has a layer of this name as a target.

    Raises:
        UserError: if a target is not a linear layer that can have a delta, its number of blocks
            does not divide its widths, or a key of `num_blocks_pattern` matches no target.
    """
    _maybe_include_all_linear_layers(config, model)
    targets = {}
    inside: list[str] = []
    for name, module in model.named_modules():
        if not name or any(name.startswith(outer) for outer in inside):
            continue
        if isinstance(module, BaseTunerLayer):
            inside.append(f"{name}.")
        if is_target(config, name):
            targets[name] = _base_of(name, module, model)
    _check_pattern(config, targets)
    if isinstance(config.num_blocks, str):
        set_num_blocks(config, resolve_num_blocks(targets, config.num_blocks))
        return
    by_count: dict[int, dict[str, Any]] = {}
    for name, base in targets.items():
        by_count.setdefault(num_blocks_of(config, name), {})[name] = base
    for count, layers in by_count.items():
        resolve_num_blocks(layers, str(count))


def _base_of(name: str, module: nn.Module, model: nn.Module) -> Any:
    """Return the base of a layer; UserError if it cannot have a delta."""
    inner = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
        raise UserError(
            "a target must be a layer whose forward is called; got "
            f"{name} of torch.nn.MultiheadAttention, which uses its weights directly"
        )
    try:
        return base_of(inner)
    except UserError as error:
        raise UserError(
            f"Target module {name} ({type(inner).__name__}) is not supported: {error}"
        ) from None


def _check_pattern(config: DiaBloConfig, targets: Mapping[str, Any]) -> None:
    used = {get_pattern_key(config.num_blocks_pattern, name) for name in targets}
    if targets and (unused := [key for key in config.num_blocks_pattern if key not in used]):
        raise UserError(
            "each key of num_blocks_pattern must match a target layer that no key before it "
            f"matches; got num_blocks_pattern={config.num_blocks_pattern!r}, unused "
            f"{', '.join(unused)}"
        )
