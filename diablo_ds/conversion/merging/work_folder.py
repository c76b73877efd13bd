"""The work folder of a merge: which new files are complete, so that they are not written again.

A file counts as complete only if the folder's record says so: it was synced before it was entered,
and has the size and the time of change of then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diablo_ds.conversion.merging.rounding import Rounding
from diablo_ds.files import modes, work_folders
from diablo_ds.files.atomic import sync_file, sync_folder

_UNFINISHED = ".unfinished"


class WorkFolder:
    """A work folder that this process owns; see `open_work_folder`."""

    def __init__(self, work: work_folders.WorkFolder) -> None:
        self.path = work.path
        self._work = work
        noted = {entry["name"]: entry for entry in work.notes}
        self._shards = {name: e for name, e in noted.items() if self._is_same(name, e)}
        work.remove_others(self._shards)

    def _is_same(self, name: str, entry: Mapping[str, Any]) -> bool:
        path = self.path / name
        return path.is_file() and _state(path) == entry["file"]

    def finished(self, name: str) -> dict[str, Rounding] | None:
        """Return what rounding did to the layers of a complete file; None if it is not complete."""
        entry = self._shards.get(name)
        if entry is None:
            return None
        return {layer: Rounding(**values) for layer, values in entry["layers"].items()}

    @property
    def num_finished(self) -> int:
        """Files that are complete."""
        return len(self._shards)

    def check(self) -> None:
        """Raise UserError if the folder is this process's no longer."""
        self._work.owner.check()

    def unfinished(self, name: str) -> Path:
        """Return the path under which a file is written."""
        self._work.owner.check()
        return self.path / f"{name}{_UNFINISHED}"

    def finish(self, name: str, layers: Mapping[str, Rounding]) -> None:
        """Sync a file that was written as `unfinished`, name it, and enter it in the record."""
        unfinished, path = self.path / f"{name}{_UNFINISHED}", self.path / name
        modes.set_mode(unfinished)
        sync_file(unfinished)
        self._work.owner.check()
        unfinished.rename(path)
        sync_folder(self.path)
        self._shards[name] = {
            "name": name,
            "file": _state(path),
            "layers": {layer: asdict(rounding) for layer, rounding in layers.items()},
        }
        self._work.note(self._shards[name])

    def become(self, output: Path) -> None:
        """Sync what is not synced yet, and give the folder its name."""
        for path in self.path.rglob("*"):
            modes.set_mode(path)
            if path.name not in self._shards and path.is_file():
                sync_file(path)
        self._work.owner.check()
        sync_folder(self.path)
        self._work.become(output)
        sync_folder(output.parent)


@contextlib.contextmanager
def open_work_folder(output: Path, inputs: Mapping[str, Any]) -> Iterator[WorkFolder]:
    """Own the work folder of an output; see `diablo_ds.files.work_folders.open_work_folder`.

    Args:
        output: the new folder, which does not exist.
        inputs: JSON values that tell what the merge is made from.

    Raises:
        UserError: if another process makes the same output.
        OSError: if it cannot be written.
    """
    what = "output that is being merged"
    # After a user's mistake the same inputs would end in the same way.
    with work_folders.open_work_folder(output, inputs, what, keep_after_mistake=False) as work:
        yield WorkFolder(work)


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]
