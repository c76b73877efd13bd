"""Short names for the models of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diablo_ds.errors import UserError

BASE = "base"
"""The name of the base model beside its adapters."""


def model_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each path: its last part, or as many of them as tell it from the others."""
    parts = [[p for p in path.expanduser().absolute().parts if p != "/"] for path in paths]
    parts = [p[:-1] if len(p) > 1 and p[-1] == "adapter" else p for p in parts]
    parts = [[p for p in own if p != "checkpoints"] for own in parts]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"each adapter must be given once; got {path} twice")
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(own[-max(count, 1 + own[-1].startswith("step-")) :]) for own in parts]
        if len({BASE, *names}) == 1 + len(names):
            return names
    return [str(path) for path in paths]
