"""The public corpora, where they are on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]
CORPORA = Path(os.environ.get("DIABLO_CORPORA", _ROOT.parent / "shared" / "corpora"))


def corpus(name: str) -> Path:
    """Return a file of the corpora; skip the test where it is missing."""
    path = CORPORA / name
    if not path.exists():
        pytest.skip(f"the public corpora have no {name} in {CORPORA} (DIABLO_CORPORA)")
    return path
