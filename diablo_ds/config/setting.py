"""Settings: fields of a dataclass that know their range, group and help, checked by themselves."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diablo_ds.errors import UserError
from diablo_ds.files.strict_json import check_text

LARGEST = 2**31 - 1
"""Largest integer where a setting names no maximum; tokens and steps are 32-bit numbers."""
LARGEST_FLOAT = (2 - 2.0**-23) * 2.0**127
"""Largest number with a fraction where a setting names no maximum: that of fp32."""
AUTO = "auto"
"""The word for a number that is open, where one is given as text."""
REQUIRED = dataclasses.MISSING
"""The default of a setting that must be given."""

Group = Literal[
    "config files",
    "hosts",
    "job",
    "network",
    "environment",
    "restarts",
    "start",
    "sources",
    "model",
    "hardware",
    "data",
    "adapter",
    "batch",
    "optimizer",
    "memory and speed",
    "run",
    "task scores",
]
GROUPS: tuple[Group, ...] = typing.get_args(Group)
"""In the order in which help texts and documents show them."""

OnResume = Literal["fixed", "ahead", "free"]
"""Whether a run may continue with another value: not, since that makes another run; for the steps
to come; or freely, since it changes no number beyond rounding."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known of one field: name and type from its dataclass, the rest as declared."""

    default: Any
    help: str
    """One sentence, with the unit."""
    group: Group
    minimum: float | None = None
    above: float | None = None
    """A minimum that is not allowed itself."""
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    """Legal texts; empty for any. The choices of a `Literal` field are taken from its type."""
    on_resume: OnResume = "fixed"
    is_open: bool = False
    """Whether the default leaves the value to be chosen when a run starts."""
    shown_default: str = ""
    """The default in words, where the value itself does not say it."""
    name: str = ""
    kind: type = str
    is_optional: bool = False
    """Whether None is legal, for a value that was not given."""
    is_repeatable: bool = False
    """Whether the value is a tuple of texts."""

    @property
    def option(self) -> str:
        """The name of its command line option, with dashes."""
        return option_name(self.name)

    @property
    def takes_auto(self) -> bool:
        """Whether the word auto stands for the default: a number that a run's start chooses."""
        return self.is_open and self.kind in (int, float)

    @property
    def is_required(self) -> bool:
        """Whether there is no default."""
        return self.default is REQUIRED

    def default_text(self) -> str:
        """Return the default in words; empty where there is nothing to say."""
        if self.shown_default or self.is_required:
            return self.shown_default
        if self.is_open and self.default == 0:
            return AUTO
        if isinstance(self.default, bool):
            return "on" if self.default else "off"
        return "" if self.default in ("", None, ()) else str(self.default)

    def range_text(self) -> str:
        """Return the range of a number as text, e.g. "0 to 0.5"; empty for any."""
        upper = self.maximum if self.maximum is not None and self.maximum < LARGEST else None
        if self.minimum is not None and upper is not None:
            return f"{self.minimum} to {upper}"
        bounds = (("at least", self.minimum), ("above", self.above), ("at most", upper))
        return ", ".join(f"{words} {bound}" for words, bound in bounds if bound is not None)

    def check(self, value: Any) -> None:
        """Raise UserError where a value has another type, is out of range, or is not one line."""
        name = self.name
        if not self._has_type(value):
            raise UserError(f"{name} must be {self._type_text()}; got {name}={value!r:.60}")
        for item in value if self.is_repeatable else (value,):
            if self.choices and item is not None and item not in self.choices:
                raise UserError(
                    f"{name} must be one of {', '.join(self.choices)}; got {name}={item!r:.60}"
                )
        if isinstance(value, int | float) and not isinstance(value, bool):
            self._check_range(value)
        check_text(**{name: str(value) if isinstance(value, Path) else value})

    def _has_type(self, value: Any) -> bool:
        if self.is_repeatable:
            return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        if value is None:
            return self.is_optional
        if isinstance(value, bool):
            return self.kind is bool
        return isinstance(value, self.kind) or (self.kind is float and isinstance(value, int))

    def _type_text(self) -> str:
        if self.is_repeatable:
            return "a list of strings"
        return f"{self.kind.__name__}{' | None' if self.is_optional else ''}"

    def _check_range(self, value: int | float) -> None:
        name, maximum = self.name, self.maximum
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} must be a finite number; got {name}={value}")
        if self.above is not None and value <= self.above:
            raise UserError(f"{name} must be > {self.above}; got {name}={value!s:.60}")
        if self.minimum is not None and value < self.minimum:
            raise UserError(f"{name} must be >= {self.minimum}; got {name}={value!s:.60}")
        if maximum is None:
            maximum = LARGEST_FLOAT if self.kind is float else LARGEST
        if value > maximum:
            raise UserError(f"{name} must be <= {maximum}; got {name}={value!s:.60}")


def setting(
    default: Any,
    help: str,
    group: Group,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    on_resume: OnResume = "fixed",
    is_open: bool = False,
    shown_default: str = "",
) -> Any:
    """Declare a field of a frozen dataclass; the arguments are the fields of `Setting`."""
    declared = Setting(
        default=default,
        help=help,
        group=group,
        minimum=minimum,
        above=above,
        maximum=maximum,
        choices=choices,
        on_resume=on_resume,
        is_open=is_open,
        shown_default=shown_default,
    )
    return dataclasses.field(default=default, metadata={"setting": declared})


@functools.cache
def settings_of(cls: Any) -> tuple[Setting, ...]:
    """Return the settings of a dataclass, in its order; other fields are skipped."""
    hints = typing.get_type_hints(cls)
    return tuple(
        _with_type(field.metadata["setting"], field.name, hints[field.name])
        for field in dataclasses.fields(cls)
        if "setting" in field.metadata
    )


def check_settings(settings: object) -> None:
    """Check each field of a frozen dataclass whose fields were declared with `setting`.

    Negative zero becomes zero.

    Raises:
        UserError: if a value has another type than its field, is out of its range, is not finite,
            or is text that cannot be written on one line.
    """
    cls: Any = type(settings)
    for declared in settings_of(cls):
        value = getattr(settings, declared.name)
        declared.check(value)
        if isinstance(value, float) and value == 0:
            object.__setattr__(settings, declared.name, abs(value))


def option_name(name: str) -> str:
    """Return the command line option of a field."""
    return f"--{name.replace('_', '-')}"


def option_words(name: str, value: Any) -> list[str]:
    """Return the words of a command line that give a field a value."""
    option = option_name(name)
    if isinstance(value, bool):
        return [option if value else f"--no-{option[2:]}"]
    values = value if isinstance(value, tuple) else (value,)
    return [word for item in values for word in with_value(option, str(item))]


def with_value(option: str, value: str) -> list[str]:
    """Return the words of a command line that give an option a value.

    A value that begins with a dash is one word with its option: guards and launchers, which read
    the command line first, would take it for an option of their own.
    """
    return [f"{option}={value}"] if value.startswith("-") else [option, value]


def _with_type(declared: Setting, name: str, hint: Any) -> Setting:
    """Return a setting with what the type of its field says."""
    is_optional = typing.get_origin(hint) in (types.UnionType, typing.Union)
    if is_optional:
        (hint,) = (arg for arg in typing.get_args(hint) if arg is not types.NoneType)
    is_repeatable = typing.get_origin(hint) is tuple
    is_literal = typing.get_origin(hint) is Literal
    return dataclasses.replace(
        declared,
        name=name,
        kind=str if is_repeatable or is_literal else hint,
        choices=typing.get_args(hint) if is_literal else declared.choices,
        is_optional=is_optional,
        is_repeatable=is_repeatable,
    )
