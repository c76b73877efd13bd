"""Sweeps: settings with several values each, and the runs that all combinations of them make."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diablo_ds.config.setting import AUTO, Setting, option_name
from diablo_ds.config.suggestion import did_you_mean
from diablo_ds.errors import UserError

_SWITCH = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
_UNSAFE = re.compile(r"[^A-Za-z0-9._+%-]+")
MAX_NAME_BYTES = 200
"""Of a run's folder; file systems allow 255."""
MAX_RUNS = 10_000


@dataclass(frozen=True)
class Axis:
    """A setting and the values that a sweep gives it."""

    field: str
    values: tuple[Any, ...]
    """Of the field's type."""
    names: tuple[str, ...]
    """Of each value, for the names of runs; all different."""

    @property
    def title(self) -> str:
        """The option without its dashes in front."""
        return option_name(self.field).removeprefix("--")


@dataclass(frozen=True)
class Combination:
    """One value of each axis."""

    name: str
    """Of the run and its folder, as in learning-rate=0.001,num-blocks=32."""
    values: Mapping[str, Any]
    """By field."""
    shown: tuple[str, ...]
    """The values in the order of the axes, for a table."""


def parse_axes(
    texts: Sequence[str], settings: Iterable[Setting], given: Collection[str]
) -> tuple[Axis, ...]:
    """Read the options ``--sweep setting=value,value,...``.

    Args:
        texts: their values. Semicolons separate where a value holds a comma.
        settings: those that a sweep may go over.
        given: fields that have options of their own on the same command line.

    Raises:
        UserError: if a setting is unknown, named twice or given directly too, or a value is not of
            its type or named twice.
    """
    known = {setting.option.removeprefix("--"): setting for setting in settings}
    axes: list[Axis] = []
    for text in texts:
        title, equals, listed = text.partition("=")
        title = title.strip().removeprefix("--").replace("_", "-")
        if not equals or not title:
            raise UserError(f"sweep must read `setting=value,value,...`; got sweep={text!r}")
        if title not in known:
            raise UserError(
                "a sweep must go over settings of the run that may differ between its runs; got "
                f"sweep={text!r}{did_you_mean(title, known)}"
            )
        setting = known[title]
        if setting.name in given:
            raise UserError(
                f"{setting.name} must be given by --sweep or by {setting.option}, not by both"
            )
        if setting.name in (axis.field for axis in axes):
            raise UserError(
                f"a setting must be swept once; got {title} twice; give all of its values in one "
                "--sweep"
            )
        words = [word.strip() for word in listed.split(";" if ";" in listed else ",")]
        values = [_parse_value(setting, word, text) for word in words]
        twice = [w for w, v in zip(words, values, strict=True) if values.count(v) > 1]
        if twice:
            raise UserError(f"values of a sweep must differ; got {' and '.join(twice)} in {text!r}")
        axes.append(Axis(setting.name, tuple(values), _names(setting, values, text)))
    return tuple(axes)


def combinations(axes: Sequence[Axis]) -> list[Combination]:
    """Return all combinations of the axes' values; the last axis changes first.

    Raises:
        UserError: if they are very many, or their names are too long for a folder.
    """
    number = 1
    for axis in axes:
        number *= len(axis.values)
    if number > MAX_RUNS:
        raise UserError(f"a sweep must have at most {MAX_RUNS:,} runs; got {number:,}")
    found = []
    for places in itertools.product(*(range(len(axis.values)) for axis in axes)):
        chosen = list(zip(axes, places, strict=True))
        name = ",".join(f"{axis.title}={axis.names[place]}" for axis, place in chosen)
        if len(name.encode()) > MAX_NAME_BYTES:
            raise UserError(
                f"the values of a sweep must fit into a folder name of {MAX_NAME_BYTES} bytes; got "
                f"{name}"
            )
        values = {axis.field: axis.values[place] for axis, place in chosen}
        found.append(Combination(name, values, tuple(axis.names[place] for axis, place in chosen)))
    return found


def _parse_value(setting: Setting, word: str, text: str) -> Any:
    """Return a value of the setting's type; its range is checked where the run config is built."""
    kind = setting.kind
    try:
        if not word:
            raise ValueError
        if kind is bool:
            return _SWITCH[word.lower()]
        value = setting.default if setting.takes_auto and word == AUTO else kind(word)
    except (ValueError, KeyError):
        what = {bool: "on or off", int: "an integer", float: "a number"}.get(kind, "not empty")
        raise UserError(
            f"sweep: a value of {setting.name} must be {what}; got {word!r} in {text!r}"
        ) from None
    return (value,) if setting.is_repeatable else value


def _names(setting: Setting, values: Sequence[Any], text: str) -> tuple[str, ...]:
    """Return a name for each value that can be part of a folder's name; equal values, equal names.

    Of paths it is the last part, where these differ.
    """
    is_auto = [setting.takes_auto and value == setting.default for value in values]
    texts = [AUTO if auto else _text(value) for auto, value in zip(is_auto, values, strict=True)]
    short = [_UNSAFE.sub("-", Path(t).name if t.strip("/") else t) for t in texts]
    full = [_UNSAFE.sub("-", t) for t in texts]
    names = short if len(set(short)) == len(short) else full
    if len(set(names)) < len(names):
        raise UserError(
            f"values of a sweep must have names that differ in letters, digits and . _ + % -; got "
            f"{', '.join(texts)} of {setting.name} in {text!r}"
        )
    return tuple(names)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):  # 1e-3 and 0.001 are one run
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return ",".join(value) if isinstance(value, tuple) else str(value)
