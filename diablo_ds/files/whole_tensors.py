"""Complete safetensors files: written, read, or their header alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from diablo_ds.errors import UserError


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file; OSError where that fails, e.g. on a full disk."""
    flat = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    try:
        save_file(flat, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"could not write {path}: {error}") from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load a safetensors file, with a ValueError that names it where it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"file must be an intact safetensors file; got {path}: {error}") from None


def tensor_shapes(path: Path) -> dict[str, tuple[list[int], str]]:
    """Read names, shapes and dtypes from a safetensors header, without the data."""
    try:
        with safe_open(path, framework="pt") as file:
            return {
                name: (view.get_shape(), str(view.get_dtype()))
                for name in file.keys()  # noqa: SIM118 - not a dict
                for view in [file.get_slice(name)]
            }
    except (OSError, SafetensorError) as error:
        raise UserError(f"file must be an intact safetensors file; got {path}: {error}") from None
