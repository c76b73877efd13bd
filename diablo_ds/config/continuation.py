"""Which settings a run may change when it continues, from what on, and what to do about the others.

Each setting says it itself (`diablo_ds.config.setting.OnResume`); the page of the options, the
checks and the messages read it there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import Setting, settings_of
from diablo_ds.config.starts import Change, changed_settings
from diablo_ds.files.hub import is_same_source

OPEN_SETTINGS: dict[str, Any] = {s.name: s.default for s in settings_of(RunConfig) if s.is_open}
"""Settings that may be left open, by the value that says so."""
FREE_ON_RESUME = frozenset(s.name for s in settings_of(RunConfig) if s.on_resume == "free")
"""They move work between ranks, or say where and how often to write and when to stop, but change no
number beyond rounding."""
AHEAD = frozenset(s.name for s in settings_of(RunConfig) if s.on_resume == "ahead")
"""They may change for the steps to come."""
FREE_CHOICES = {
    "delta_path": (
        frozenset({"fused", "prefilled", "triton", "triton_prefilled"}),
        frozenset({"summed", "triton_summed"}),
    )
}
"""Choices of a setting between which a run may change: they are equal up to rounding."""
_OF_THE_ADAPTER = frozenset({"model", "num_blocks", "targets", "layers"})
"""Settings that a new run shares with the adapter from which it starts."""


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


def left_out_values(recorded: RunConfig, given: Collection[str]) -> dict[str, Any]:
    """Return the settings that were not given, as the run has them that is continued.

    Those that may change freely are not among them: they belong to a start and not to the run.
    Nor are open ones, see `keep_recorded`.

    Args:
        recorded: the run config of the run.
        given: names of the settings that were given.
    """
    names = {s.name for s in settings_of(RunConfig) if s.on_resume != "free" and not s.is_open}
    names -= set(given)
    if "num_epochs" in given:  # which a number of steps would override
        names.discard("max_steps")
    return {name: getattr(recorded, name) for name in sorted(names)}


def changes_ahead(old: RunConfig, new: RunConfig) -> list[Change]:
    """Return what changes for the steps to come; what the new one leaves open stays as it is."""
    new = keep_recorded(new, old)
    return [change for change in changed_settings(old, new) if change.field in AHEAD]


def describe_ahead(starts: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what changed for the steps to come, a line for each start that changed something.

    Args:
        starts: as a run's file records them, see `diablo_ds.config.starts`.
    """
    lines = []
    for start in starts:
        changes = [Change(**change) for change in start.get("changes", ())]
        texts = [change.text() for change in changes if change.field in AHEAD]
        if texts:
            lines.append(f"after step {start.get('start_step', 0)}: {', '.join(texts)}")
    return lines


def differing_fields(old: RunConfig, new: RunConfig) -> list[str]:
    """List the settings that forbid continuing a run, as "name: old value, new value"."""
    return [f"{setting.name}: {was!r}, now {now!r}" for setting, was, now in _differing(old, new)]


def repair_fields(old: RunConfig, new: RunConfig) -> str:
    """Return which options to leave out so that the run can be continued, for an error."""
    return f"leave out {' '.join(setting.option for setting, _, _ in _differing(old, new))}"


def can_start_from(old: RunConfig, new: RunConfig) -> bool:
    """Return whether a new run with other settings can start from the adapter of an old one."""
    return not _OF_THE_ADAPTER & {setting.name for setting, _, _ in _differing(old, new)}


def _differing(old: RunConfig, new: RunConfig) -> Iterator[tuple[Setting, Any, Any]]:
    """Yield the settings that forbid continuing a run, each with its old and its new value."""
    new = keep_recorded(new, old)
    for setting in settings_of(RunConfig):
        was, now = getattr(old, setting.name), getattr(new, setting.name)
        is_free = any({was, now} <= alike for alike in FREE_CHOICES.get(setting.name, ()))
        if setting.on_resume == "fixed" and not is_same_source(was, now) and not is_free:
            yield setting, was, now
