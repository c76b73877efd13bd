"""What the files of a checkpoint must hold: keys, types, shapes, dtypes, ranges.

Checksums tell that files are as they were written, not that what was written can be trained on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diablo_ds.errors import UserError

_COUNTS = {"step": 0, "global_batch": 1, "seed": 0, "num_optimizer_steps": 0}
"""Integers of `state.json`, and the least value of each."""


def check_position(value: Any, file: Path) -> dict[str, Any]:
    """Return the content of `state.json` if it is one.

    Raises:
        UserError: if a key is missing, or a value is of another type or out of its range.
    """
    if not isinstance(value, dict):
        raise UserError(f"checkpoint state must be a JSON object; got {_type(value)} in {file}")
    for name, least in _COUNTS.items():
        number = value.get(name)
        if type(number) is not int or not least <= number < 1 << 63:
            raise UserError(
                f"checkpoint state must have an integer {name} >= {least}; got "
                f"{name}={_short(number)} in {file}"
            )
    if value["num_optimizer_steps"] > value["step"]:
        raise UserError(
            "num_optimizer_steps must be at most step; got "
            f"num_optimizer_steps={value['num_optimizer_steps']}, step={value['step']} in {file}"
        )
    scaler = value.get("loss_scaler")
    if not isinstance(scaler, dict) or not all(map(_is_finite_number, scaler.values())):
        raise UserError(f"loss_scaler must be an object of numbers; got {_short(scaler)} in {file}")
    if not isinstance(value.get("data"), dict | None):
        raise UserError(f"data must be an object; got {_short(value['data'])} in {file}")
    return value


def check_tensors(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], file: Path
) -> None:
    """Make sure that a file holds exactly these tensors, in fp32 and without NaN or infinity.

    Args:
        tensors: what the file holds, by name.
        shapes: what it must hold.
        file: named in errors.

    Raises:
        UserError: if one is missing, unknown, of another shape or dtype, or not finite.
    """
    missing, unknown = (
        sorted(shapes.keys() - tensors.keys()),
        sorted(tensors.keys() - shapes.keys()),
    )
    if missing or unknown:
        raise UserError(
            f"checkpoint must hold exactly the run's tensors; got {len(missing)} missing "
            f"{missing[:3]}, {len(unknown)} unknown {unknown[:3]} in {file}"
        )
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != tuple(shape) or tensor.dtype != torch.float32:
            raise UserError(
                f"checkpoint tensor must be of shape {list(shape)} in fp32; got {name} of shape "
                f"{list(tensor.shape)} in {str(tensor.dtype).removeprefix('torch.')} in {file}"
            )
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"checkpoint tensor must be finite; got NaN or infinity in {name} in {file}"
            )


def _is_finite_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _type(value: Any) -> str:
    return type(value).__name__


def _short(value: Any) -> str:
    return f"{value!r:.60}"
