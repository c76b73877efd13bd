"""Settings: fields of a dataclass that know their range, each checked by itself."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

from diablo_ds.errors import UserError
from diablo_ds.files.strict_json import check_text

LARGEST = 2**31 - 1
"""Largest whole number where a setting names no maximum; tokens and steps are 32-bit numbers."""
LARGEST_FLOAT = (2 - 2.0**-23) * 2.0**127
"""Largest number with a fraction where a setting names no maximum: that of fp32."""


def setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """Declare a field of the run config: default, one sentence with the unit, legal range."""
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def check_settings(settings: Any) -> None:
    """Check each field of a frozen dataclass whose fields were declared with `setting`.

    Negative zero becomes zero.

    Raises:
        UserError: if a value has another type than its field, is out of its range, is not finite,
            or is text that cannot be written on one line.
    """
    types = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        name, value = field.name, getattr(settings, field.name)
        _check_type(name, value, types[name])
        choices = field.metadata["choices"]
        if choices and value not in choices:
            raise UserError(f"{name} must be one of {', '.join(choices)}; got {name}={value!r:.60}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            takes_fraction = float in (typing.get_args(types[name]) or (types[name],))
            maximum = field.metadata["maximum"]
            if maximum is None:
                maximum = LARGEST_FLOAT if takes_fraction else LARGEST
            _check_range(name, value, field.metadata["minimum"], maximum)
            if value == 0:
                object.__setattr__(settings, name, abs(value))
        check_text(**{name: value})


def _check_range(name: str, value: int | float, minimum: float | None, maximum: float) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be a finite number; got {name}={value}")
    if minimum is not None and value < minimum:
        raise UserError(f"{name} must be >= {minimum}; got {name}={value!s:.60}")
    if value > maximum:
        raise UserError(f"{name} must be <= {maximum}; got {name}={value!s:.60}")


def _check_type(name: str, value: Any, wanted: Any) -> None:
    """Raise UserError unless the value has the field's type; an int may stand for a float."""
    allowed = typing.get_args(wanted) or (wanted,)
    if typing.get_origin(wanted) is tuple:
        good = isinstance(value, tuple) and all(isinstance(v, str) for v in value)
    elif isinstance(value, bool):
        good = bool in allowed
    else:
        good = isinstance(value, allowed) or (float in allowed and isinstance(value, int))
    if not good:
        shown = "a list of strings" if typing.get_origin(wanted) is tuple else str(wanted)
        shown = getattr(wanted, "__name__", shown)
        raise UserError(f"{name} must be {shown}; got {name}={value!r:.60}")
