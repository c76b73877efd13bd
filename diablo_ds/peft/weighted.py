"""Weighted sums of adapters within one PEFT model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from peft.utils.other import AuxiliaryTrainingWrapper

from diablo_ds.errors import UserError
from diablo_ds.peft.geometry import set_num_blocks, set_targets

if TYPE_CHECKING:
    from diablo_ds.peft.model import DiaBloModel


def add_weighted_adapter(
    model: DiaBloModel,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str,
) -> None:
    """Do what `diablo_ds.peft.model.DiaBloModel.add_weighted_adapter` says."""
    if combination_type != "linear":
        raise UserError(
            "combination_type must be 'linear', which is exact for DiaBlo; got "
            f"combination_type={combination_type!r}"
        )
    _check_names(model, adapters, weights, adapter_name)
    num_blocks = _common_num_blocks(model, adapters)
    config = dataclasses.replace(
        model.peft_config[adapters[0]],
        inference_mode=True,
        num_deltas=None,
        step=None,
        heldout_loss=None,
        library_versions=None,
        parent=None,
    )
    set_targets(config, num_blocks.keys(), model.model)
    set_num_blocks(config, num_blocks)
    model.peft_config[adapter_name] = config
    try:
        model.inject_adapter(model.model, adapter_name)
    except Exception:
        del model.peft_config[adapter_name]
        raise
    config.inference_mode = False
    model._cast_adapter_dtype(adapter_name)
    for name, layer in model.diablo_layers():
        if name not in num_blocks:
            continue
        total = layer.diablo_delta[adapter_name]
        with torch.no_grad():
            parts = [
                weight * layer.diablo_delta[adapter].to(total.device, torch.float32)
                for adapter, weight in zip(adapters, weights, strict=True)
                if adapter in layer.diablo_delta
            ]
            total.copy_(torch.stack(parts).sum(0))


def _check_names(
    model: DiaBloModel, adapters: Sequence[str], weights: Sequence[float], adapter_name: str
) -> None:
    if not adapters or len(adapters) != len(weights):
        raise UserError(
            "there must be a weight for each adapter; got "
            f"adapters={list(adapters)}, weights={list(weights)}"
        )
    known = sorted(model.peft_config)
    if unknown := [adapter for adapter in adapters if adapter not in known]:
        raise UserError(f"Adapter {unknown[0]} does not exist; adapters: {', '.join(known)}")
    if adapter_name in known:
        raise UserError(
            "adapter_name must be a new name; got "
            f"adapter_name={adapter_name!r}; adapters: {', '.join(known)}"
        )
    for name, module in model.model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise_for = [adapter for adapter in adapters if adapter in module._adapters]
            if raise_for:
                raise UserError(
                    "an adapter must consist of deltas alone to be summed; got "
                    f"{raise_for[0]}, which also saves {name} in full"
                )


def _common_num_blocks(model: DiaBloModel, adapters: Sequence[str]) -> dict[str, int]:
    """Return the numbers of blocks of all layers in which one of the adapters has a delta."""
    found: dict[str, int] = {}
    for name, layer in model.diablo_layers():
        counts = {
            adapter: layer.diablo_delta[adapter].shape[0]
            for adapter in adapters
            if adapter in layer.diablo_delta
        }
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{adapter} has {count}" for adapter, count in counts.items())
            raise UserError(f"adapters must have equal num_blocks to be summed; in {name}, {shown}")
        if counts:
            found[name] = next(iter(counts.values()))
    return found
