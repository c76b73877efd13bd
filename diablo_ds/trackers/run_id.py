"""The name by which a tracker knows a run, kept so that a resumed run continues the same one."""

from __future__ import annotations

import secrets
from pathlib import Path

from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json, write_json

ID_FILE = "run_id.json"
"""In a tracker's folder."""
_KEY = "id"


def read_run_id(folder: Path) -> str:
    """Return the name of an earlier start of the run; empty for the first one."""
    try:
        values = read_json(folder / ID_FILE)
    except UserError:  # none, or damaged
        return ""
    name = values.get(_KEY) if isinstance(values, dict) else None
    return name if isinstance(name, str) else ""


def keep_run_id(folder: Path, name: str) -> None:
    """Write down the name."""
    write_json(folder / ID_FILE, {_KEY: name})


def find_run_id(folder: Path, beginning: str = "") -> str:
    """Return the name of an earlier start of the run, or keep a new one and return it."""
    name = read_run_id(folder)
    if not name:
        name = f"{beginning}{secrets.token_hex(4)}"
        keep_run_id(folder, name)
    return name
