"""The user's cache folder, for what this program keeps between commands."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(override: str = "") -> Path:
    """Return the cache folder: ``override``, or `diablo_ds` in the XDG cache."""
    if override:
        return Path(override)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diablo_ds"
