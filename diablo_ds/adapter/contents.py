"""What an adapter's tensors must be: deltas, complete, of the right shapes, finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from diablo_ds.adapter.config_file import ConfigFile
from diablo_ds.adapter.layer_names import likely_missing, unused_keys
from diablo_ds.errors import UserError

_KEY_PREFIX, _KEY_SUFFIX = "base_model.model.", ".diablo_delta"
_EXACT_DTYPES = {"F32", "BF16", "F16"}
"""Dtypes of tensor files that fp32 holds without rounding."""


def tensor_key(layer: str) -> str:
    """Return the name of a layer's delta in a file, by PEFT's convention."""
    return f"{_KEY_PREFIX}{layer}{_KEY_SUFFIX}"


def keys_by_layer(keys: Iterable[str], path: Path) -> dict[str, str]:
    """Return the name of each layer's delta in a file, in the order of the layers' names.

    Args:
        keys: names of the file's tensors.
        path: of the file, for the error.

    Raises:
        UserError: if a tensor is not a delta.
    """
    found = {key.removeprefix(_KEY_PREFIX).removesuffix(_KEY_SUFFIX): key for key in keys}
    if foreign := sorted(key for layer, key in found.items() if key != tensor_key(layer)):
        raise UserError(
            f"an adapter's tensors must be deltas, {tensor_key('<layer>')}; got {some(foreign)} in "
            f"{path}; load an adapter with other tensors, such as those of modules_to_save, with "
            "PEFT (diablo_ds.peft), which can merge it too"
        )
    return dict(sorted(found.items()))


def check_complete(file: ConfigFile, layers: list[str], path: Path) -> None:
    """Raise UserError unless the tensors' layers are those of the config, as far as it tells.

    Args:
        file: the config.
        layers: those that there are deltas for.
        path: of the tensor file, for the error.
    """
    if not layers:
        raise UserError(f"an adapter must have at least one delta; got none in {path}")
    if unknown := [name for name in layers if not file.targets.matches(name)]:
        raise UserError(
            f"each delta must be of a layer that target_modules match; got {some(unknown)} in "
            f"{path}"
        )
    if file.num_deltas is None:  # PEFT wrote it; its targets may name what a model lacks
        return
    unused = file.targets.unused(layers)
    if len(layers) != file.num_deltas:
        missing = likely_missing(layers)
        more = ""
        if len(missing) == file.num_deltas - len(layers):
            more = f"; missing: {some(missing)}"
        elif unused:
            more = f"; target_modules that match none: {some(unused)}"
        raise UserError(
            f"an adapter must have the num_deltas={file.num_deltas} deltas of its config; got "
            f"{len(layers)} in {path}{more}"
        )
    for name, keys in (
        ("target_modules", unused),
        ("num_blocks_pattern", unused_keys(layers, file.num_blocks_pattern)),
    ):
        if keys:
            raise UserError(f"each of {name} must match a delta; got {some(keys)} in {path}")


def check_shape(layer: str, shape: list[int], dtype: str, count: int, path: Path) -> None:
    """Raise UserError unless a stored delta has its config's block count, and a dtype to train on.

    Args:
        layer: the delta's layer.
        shape: the delta's.
        dtype: by its name in safetensors files.
        count: block count of the layer.
        path: named in errors.
    """
    if len(shape) != 3 or shape[0] != count or 0 in shape:
        raise UserError(
            "a delta must have the shape [num_blocks, in_block, out_block]; got "
            f"{shape} for {layer} with num_blocks={count} in {path}"
        )
    if dtype not in _EXACT_DTYPES:
        raise UserError(
            f"a delta must be of a dtype that fp32 holds, {', '.join(_EXACT_DTYPES)}; got {dtype} "
            f"for {layer} in {path}"
        )


def check_finite(tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raise UserError where a delta holds NaN or an infinity; names it and the source."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"a delta must be finite; got NaN or infinity in {name} in {source}")


def some(names: list[str]) -> str:
    """Return the first of some names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
