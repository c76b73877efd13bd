"""Which settings a run may change when it goes on, and what to do about the others."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from typing import Any

from diablo_ds.config.run import OPEN_SETTINGS, RunConfig

# They move work between ranks, or say where and how often to write, but change no number beyond
# rounding.
FREE_ON_RESUME = frozenset(
    {
        *("output", "cache_folder", "shared_folders"),
        *("micro_batch", "micro_batch_tokens", "gradient_checkpointing", "reentrant"),
        *("checkpointed_layers", "keep_attention", "memory_budget", "attention", "compile"),
        "allow_changed_data",
        *("log_every", "eval_every", "save_every", "keep_last", "hang_timeout"),
    }
)

# Other choices of a setting that a run may go on with: they are equal up to rounding.
FREE_CHOICES = {
    "delta_path": (
        frozenset({"fused", "prefilled", "triton", "triton_prefilled"}),
        frozenset({"merged", "triton_merged"}),
    )
}


def keep_recorded(config: RunConfig, recorded: RunConfig) -> RunConfig:
    """Return a run config whose open settings are those of the run that it continues.

    Settings that may differ in a continuation stay open, to be chosen for its ranks.
    """
    kept = {
        name: getattr(recorded, name)
        for name, is_open in OPEN_SETTINGS.items()
        if name not in FREE_ON_RESUME and getattr(config, name) == is_open
    }
    return dataclasses.replace(config, **kept)


def differing_fields(old: RunConfig, new: RunConfig) -> list[str]:
    """List the settings that forbid continuing a run, as "name: old value, new value"."""
    return [f"{field.name}: {was!r}, now {now!r}" for field, was, now in _differing(old, new)]


def repair_fields(old: RunConfig, new: RunConfig) -> str:
    """Return what to do with the options so that the run can be continued, for an error."""
    left_out, given = [], []
    for field, value, _ in _differing(old, new):
        option = f"--{field.name.replace('_', '-')}"
        if value == field.default:
            left_out.append(option)
        elif isinstance(value, bool):
            given.append(option if value else f"--no-{option[2:]}")
        else:
            words = value if isinstance(value, tuple) else (value,)
            given += [f"{option} {shlex.quote(str(word))}" for word in words]
    what = (("leave out", left_out), ("give", given))
    return " and ".join(f"{verb} {' '.join(options)}" for verb, options in what if options)


def _differing(old: RunConfig, new: RunConfig) -> Iterator[tuple[dataclasses.Field[Any], Any, Any]]:
    """Yield the fields that forbid continuing a run, each with its old and its new value."""
    new = keep_recorded(new, old)
    for field in dataclasses.fields(old):
        was, now = getattr(old, field.name), getattr(new, field.name)
        is_free = any({was, now} <= alike for alike in FREE_CHOICES.get(field.name, ()))
        if field.name not in FREE_ON_RESUME and was != now and not is_free:
            yield field, was, now
