"""Which settings a run may change when it continues, and what to do about the others."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from typing import Any

from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import Setting, option_words, settings_of

OPEN_SETTINGS: dict[str, Any] = {s.name: s.default for s in settings_of(RunConfig) if s.is_open}
"""Settings that may be left open, by the value that says so."""
FREE_ON_RESUME = frozenset(s.name for s in settings_of(RunConfig) if s.free_on_resume)
"""They move work between ranks, or say where and how often to write, but change no number beyond
rounding."""
FREE_CHOICES = {
    "delta_path": (
        frozenset({"fused", "prefilled", "triton", "triton_prefilled"}),
        frozenset({"summed", "triton_summed"}),
    )
}
"""Choices of a setting between which a run may change: they are equal up to rounding."""


def keep_recorded(run_config: RunConfig, recorded: RunConfig) -> RunConfig:
    """Return a run config whose open settings are those of the run that it continues.

    Settings that may differ in a continuation stay open, to be chosen for its ranks.
    """
    kept = {
        name: getattr(recorded, name)
        for name, is_open in OPEN_SETTINGS.items()
        if name not in FREE_ON_RESUME and getattr(run_config, name) == is_open
    }
    return dataclasses.replace(run_config, **kept)


def differing_fields(old: RunConfig, new: RunConfig) -> list[str]:
    """List the settings that forbid continuing a run, as "name: old value, new value"."""
    return [f"{setting.name}: {was!r}, now {now!r}" for setting, was, now in _differing(old, new)]


def repair_fields(old: RunConfig, new: RunConfig) -> str:
    """Return what to do with the options so that the run can be continued, for an error."""
    left_out, given = [], []
    for setting, value, _ in _differing(old, new):
        if value == setting.default:
            left_out.append(setting.option)
        else:
            given.append(shlex.join(option_words(setting.name, value)))
    what = (("leave out", left_out), ("give", given))
    return " and ".join(f"{verb} {' '.join(options)}" for verb, options in what if options)


def _differing(old: RunConfig, new: RunConfig) -> Iterator[tuple[Setting, Any, Any]]:
    """Yield the settings that forbid continuing a run, each with its old and its new value."""
    new = keep_recorded(new, old)
    for setting in settings_of(RunConfig):
        was, now = getattr(old, setting.name), getattr(new, setting.name)
        is_free = any({was, now} <= alike for alike in FREE_CHOICES.get(setting.name, ()))
        if not setting.free_on_resume and was != now and not is_free:
            yield setting, was, now
