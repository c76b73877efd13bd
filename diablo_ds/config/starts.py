"""The record of what made a run, in its `run.json`: one entry for each start."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diablo_ds.config import remote_code
from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import settings_of
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json
from diablo_ds.files.hub import is_same_source

BY_COMMAND_ALONE = (remote_code.NAME, "allow_group_write")
"""Settings by which a user trusts others, so that no file can give them, nor a record."""
OF_A_START = ("output", *BY_COMMAND_ALONE)
"""Settings that say nothing of a run."""
STARTS = "starts"
"""Key of the entries in a run's file; no setting."""


@dataclass(frozen=True)
class Change:
    """A setting that a run continues with another value of."""

    field: str
    old: Any
    new: Any

    def text(self) -> str:
        """Return it as "field: old -> new"."""
        return f"{self.field}: {_shown(self.old)} -> {_shown(self.new)}"


_CHANGE_KEYS = {field.name for field in dataclasses.fields(Change)}


@dataclass(frozen=True, kw_only=True)
class StartRecord:
    """One start of a run: what was started, by whom it was made, where, and on what."""

    date: str
    """ISO 8601, with the offset from UTC."""
    command: str
    """As a line for a shell, without secrets."""
    working_folder: str
    """Which relative paths start from."""
    version: str
    commit: str | None
    """Of git; None where the package does not know it."""
    is_modified: bool | None
    """Whether source files differed from the commit; None where that is not known."""
    hosts: tuple[Mapping[str, Any], ...]
    """`name`, `ranks` and `device` of each host."""
    world_size: int
    gradient_accumulation_steps: int | None
    """Micro batches per rank and step; None where micro batches are counted in tokens."""
    start_step: int
    """Optimizer steps that were taken before."""
    changes: tuple[Change, ...]
    """Settings that differ from those of the start before."""
    ds_config_file: str
    ds_config: Mapping[str, Any]
    """The complete config that DeepSpeed got."""
    library_versions: Mapping[str, str]
    model: Mapping[str, Any]
    """`id` on the hub and its `revision`, None where there is none, `path` and `fingerprint`."""
    data: Mapping[str, Any]
    """`train` and `heldout`: fingerprint and counts; `heldout` is None where there are none."""
    plan: Mapping[str, float] | None
    """What a plan expects on these GPUs: `tokens_per_s`, `step_s`, `mfu`, `memory_bytes`."""
    hub: Mapping[str, str]
    """Revision of each repository of the hub that was used, such as of "models/owner/name"."""

    def as_json(self) -> dict[str, Any]:
        """Return it as the object that `run.json` has."""
        return dataclasses.asdict(self)


def load_starts(path: Path) -> list[dict[str, Any]]:
    """Return the starts that a run's file records, the first one first; none for an early version.

    Raises:
        UserError: if the file is not JSON, or an entry has no form of one.
    """
    values = read_json(path) if path.is_file() else {}
    starts = values.get(STARTS, []) if isinstance(values, dict) else []
    if not isinstance(starts, list) or not all(map(_is_entry, starts)):
        raise UserError(
            f"{STARTS} must be a list of objects as each start writes one; got {starts!r:.60} in "
            f"{path}; remove {STARTS} from the file to continue without what it records"
        )
    return starts


def _is_entry(value: Any) -> bool:
    """Return whether a value has the form of an entry, as far as commands read it."""
    if not isinstance(value, dict):
        return False
    hosts, changes = value.get("hosts", []), value.get("changes", [])
    return (
        isinstance(value.get("date", ""), str)
        and isinstance(value.get("commit") or "", str)
        and isinstance(hosts, list)
        and all(isinstance(host, dict) and isinstance(host.get("name"), str) for host in hosts)
        and isinstance(changes, list)
        and all(isinstance(change, dict) and change.keys() == _CHANGE_KEYS for change in changes)
    )


def host_text(host: Mapping[str, Any]) -> str:
    """Return an entry of `StartRecord.hosts` in words."""
    return f"{host.get('ranks', '?')} x {host.get('device', '?')} on {host['name']}"


def changed_settings(old: RunConfig, new: RunConfig) -> tuple[Change, ...]:
    """Return the settings in which two run configs differ; their folder is the same run's."""
    values = (
        (setting.name, getattr(old, setting.name), getattr(new, setting.name))
        for setting in settings_of(RunConfig)
        if setting.name not in OF_A_START
    )
    return tuple(
        Change(name, was, now) for name, was, now in values if not is_same_source(was, now)
    )


def changed_values(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str
) -> tuple[Change, ...]:
    """Return where two DeepSpeed configs differ, by the path of each value; None for no value."""
    changes: list[Change] = []
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            changes += changed_values(was, now, f"{prefix}.{key}")
        elif was != now:
            changes.append(Change(f"{prefix}.{key}", was, now))
    return tuple(changes)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        value = ", ".join(map(str, value))
    return "none" if value in (None, "") else f"{value!s:.60}"
