"""What is fuzzed: a reader, the files that it reads, and hostile ones made by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Target:
    """A reader and the files of a folder that it reads."""

    name: str
    files: Mapping[str, bytes]
    """Valid content by path in the folder."""
    fuzzed: Sequence[str]
    """Those of the files that are changed, one at a time."""
    read: Callable[[Path], object]
    """Reads a folder as the product does; may raise an error for the user, and nothing else."""
    hostile: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    """Content made by hand, by the path of the file that it replaces."""


def files_below(folder: Path) -> dict[str, bytes]:
    """Return the content of all files of a folder by their paths in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
