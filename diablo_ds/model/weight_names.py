"""Where the base files keep the weight of a layer: under its module's name, or another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from diablo_ds.adapter.base import is_linear
from diablo_ds.adapter.targets import DEFAULT_TARGETS, layer_number
from diablo_ds.errors import UserError
from diablo_ds.files.tensor_files import StoredTensor
from diablo_ds.model.architecture import (
    build_meta_model,
    load_model_config,
    read_config_values,
)

_REPAIR = (
    "merge such a model in memory: attach, load_deltas, diablo_ds.adapter.merging.merge, and the "
    "model's save_pretrained"
)


def find_weights(
    folder: Path, tensors: Mapping[str, StoredTensor], layers: Iterable[str]
) -> dict[str, str]:
    """Return which stored tensor is the weight of each layer, as transformers loads the files.

    For families with default targets, whose files have the names of their modules, this needs
    neither transformers nor the memory that it takes.

    Args:
        folder: the base model's.
        tensors: its tensors, by the name in the files.
        layers: full module names of linear layers.

    Returns:
        The name in the files by the name of the layer.

    Raises:
        UserError: if the base has no such linear layer, its weight is tied to an embedding, or it
            is put together from stored tensors in another way than by renaming one.
    """
    layers = list(layers)
    values = read_config_values(folder)
    is_plain = values["model_type"] in DEFAULT_TARGETS and all(
        f"{layer}.weight" in tensors and layer_number(layer) is not None for layer in layers
    )
    if is_plain:
        return {layer: f"{layer}.weight" for layer in layers}
    model = build_meta_model(load_model_config(folder))
    _check_layers(model, layers, folder)
    stored, converted = _renamed(model, tensors)
    found = {layer: stored.get(f"{layer}.weight", "") for layer in layers}
    for layer, name in found.items():
        if name:
            continue
        if converted:
            raise UserError(
                "a merge needs each target layer's weight as one tensor of the base files; got "
                f"{layer}, which transformers makes from others in {folder}; {_REPAIR}"
            )
        raise UserError(
            f"base files must hold the weight of each target layer; got none for {layer} in "
            f"{folder}; copy them again"
        )
    return found


def _check_layers(model: Any, layers: list[str], folder: Path) -> None:
    modules = dict(model.named_modules())
    unknown = [layer for layer in layers if not is_linear(modules.get(layer, nn.Identity()))]
    if unknown:
        raise UserError(
            "base model must have every layer of the adapter as a linear layer; got "
            f"{len(unknown)} of {len(layers)} that are none, e.g. {unknown[0]}, in {folder} of "
            f"model type {model.config.model_type!r}; name the adapter's own base with --base"
        )
    embeddings = {id(m.weight): name for name, m in modules.items() if isinstance(m, nn.Embedding)}
    for layer in layers:
        embedding = embeddings.get(id(modules[layer].weight))
        if embedding:
            raise UserError(
                "a layer with a delta must have a weight of its own; got "
                f"{layer}, which is tied to {embedding} in {folder}: its merge would change both"
            )


def _renamed(model: Any, tensors: Iterable[str]) -> tuple[dict[str, str], bool]:
    """Return the stored name of each weight that is only renamed, and whether others are not.

    This follows what transformers does with each name before it loads the tensor.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    conversions = get_model_conversion_mapping(model)
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    state, prefix = model.state_dict(), model.base_model_prefix
    found, is_converted = {}, False
    for name in tensors:
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state and name in state:
            renamed, pattern = rename_source_key(name, [], [], prefix, state)
        if pattern is None:
            found[renamed] = name
        else:
            is_converted = True
    return found, is_converted
